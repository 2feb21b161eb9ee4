"""QEMU for L1: version 10 from the backports suite, since 7.2 gets XSAVE wrong in nested guests.

Its VMRUN is mended on the way.  QEMU 10.0 to 11.1 note the vector of an injected interrupt as an exception yet to be taken
(svm_helper.c, `helper_vmrun`, SVM_EVTINJ_TYPE_INTR), although they have just delivered it, and deliver it again when the
CPU next leaves its loop without an exit of the guest, even where the guest has interrupts off.  Guests of L1 then hang or
crash: Debian 5.10 with one vCPU in one boot of ten, with two in every second.
"""

import os
import re
import sys
from pathlib import Path

from debian import CACHE, Suite, unpack_once

_INJECTED = re.compile(
    rb"(\x89[\x80-\xbf].{4})"  # mov  %vector, exception_index: this goes
    rb"\xc7[\x80-\x87].{4}\0{4}"  # movl $0, exception_is_int
    rb"\x48\xc7[\x80-\x87].{4}\xff{4}"  # movq $-1, exception_next_eip
    rb"\xf6\x05.{4}\x02\x0f\x85.{4}"  # testb $CPU_LOG_TB_IN_ASM, qemu_loglevel; jne
    rb"\xba\x01\0\0\0\x48\x89.\xe8",  # mov $1, %edx; mov %env, %rdi; call do_interrupt_x86_hardirq
    re.DOTALL,
)
_NOP = bytes.fromhex("660f1f440000")


def mended(program: bytes) -> bytes | None:
    """The program without the stray store; None where the code around it is not found exactly once."""
    found = list(_INJECTED.finditer(program))
    if len(found) != 1:
        return None
    start, end = found[0].span(1)
    return program[:start] + _NOP + program[end:]


def qemu() -> tuple[list[str], dict[str, str]]:
    """The command and environment of QEMU, unpacked in the cache."""
    suite = Suite("bookworm-backports")
    folder = unpack_once(CACHE / "qemu", lambda target: suite.unpack(suite.with_dependencies("qemu-system-x86"), target))
    original = folder / "usr/bin/qemu-system-x86_64"

    def mend(target: Path) -> None:
        program = mended(original.read_bytes())
        if program is None:
            print("ci/nested: VMRUN was not found in this QEMU to be mended; guests in L1 may hang", file=sys.stderr)
        place = target / original.name
        place.write_bytes(program or original.read_bytes())
        place.chmod(0o755)

    program = unpack_once(CACHE / "qemu-mended", mend) / original.name
    libraries = f"{folder}/usr/lib/x86_64-linux-gnu:{folder}/lib/x86_64-linux-gnu"
    environment = dict(os.environ, LD_LIBRARY_PATH=libraries, QEMU_MODULE_DIR=f"{folder}/usr/lib/x86_64-linux-gnu/qemu")
    return [str(program), "-L", f"{folder}/usr/share/qemu", "-L", f"{folder}/usr/share/seabios"], environment
