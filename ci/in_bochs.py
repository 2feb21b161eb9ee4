"""L1 in Bochs, with VT-x, over disks that hold a copy of what its job needs.

Bochs is trixie's, unpacked in the cache and run by trixie's own loader, since it wants a newer libc than bookworm has.  Its
time counts instructions.  An option ROM enters L1's kernel (loader.S): neither boot loader nor decompressor runs.

Its VMX is mended on the way, in two places of Bochs 3.0 (cpu/vmx.cc).  A VM entry leaves external interrupts masked where
guest and host both have them off (`handleInterruptMaskChange` runs for a change of IF alone), although they are to cause an
exit: a guest that spins with interrupts off, as one CPU that waits for another, never came back to L1.  And an exit leaves
them unmasked, so that L1 took an interrupt with IF clear.

The first disk is what the option ROM reads, a partition table, and three file systems, one over the other: packages, the
environment and the cache, and the checkout.  The second takes the job's output (l1-relay says how), the third is --out.
"""

import argparse
import hashlib
import os
import re
import struct
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

import pack
from debian import CACHE, FetchError, Kernel, Suite, unpack_once
from l1 import HERE, KERNEL_COMMAND_LINE, PROGRAM, TIMED_OUT, boot_files, compile_ahead, explain, mended_copy, write_job

from vmm.boot import pvh
from vmm.boot.elf import ElfImage
from vmm.kvm import HostMemory
from vmm.xenabi.constants import E820
from vmm.xenabi.values import MemmapEntry

PACKAGES = ("bochs", "bochs-term", "bochsbios", "vgabios")
LIBRARIES = (
    "libc6",
    "libgcc-s1",
    "libstdc++6",
    "libltdl7",
    "libsamplerate0",
    "libreadline8t64",
    "libncurses6",
    "libtinfo6",
)
MODULES = ("ata_piix", "sd_mod", "crc32c_generic", "ext4", "overlay", "tun", "bridge", "loop", "dm-mod", "kvm-intel")
ARGUMENTS = {"kvm_intel": "enable_apicv=0"}
"""With APICv this Bochs refuses VM entry: "Posted Interrupt Descriptor phy addr malformed"."""
MIPS = 200
"""Millions of instructions in a second of L1's time: TSC and Bochs's clock count them, and skip an idle CPU's time."""
COMMAND_LINE = "8250.nr_uarts=2 initcall_blacklist=trace_eval_init tsc_early_khz={khz} l1=disks"
"""Without names for the trace events' numbers, which nobody asks for, L1 is up 120 million instructions earlier.  The TSC's
frequency is said here, since CPUID says 3.5 GHz: L1's second would be 3,500 million instructions, and each of a guest's
busy waits eighteen times as long."""
MEMORY = "2G"
SMP = 1
LOADED_AT = 1 << 24
SECTOR = 512
TABLE_BYTES = 1 << 20
CHANNEL_BYTES = 16 << 30
OUT_ROOM_BYTES = 2 << 30
ACPI_BYTES = 1 << 16
"""Of the BIOS's tables, at the end of RAM."""
_LOADER_TABLE = 488
_FRAME = struct.Struct("<4sIII")
_MARK = b"L1>\n"
_STATUS = 0
POLL_S = 0.02
ESCAPE = b"\x1d"  # Ctrl-]


_ENTRY = re.compile(
    rb"\x83([\xa0-\xa7])(.)(.{3})\xfb"  # andl $~BX_EVENT_INIT, event_mask
    rb"(\xc6[\x80-\x87].{4}\x01)"  # movb $1, in_vmx_guest
    rb"\xf6([\x80-\x87])(.)(.{3})\x04",  # testb $BX_EVENT_INIT, pending_event
    re.DOTALL,
)
_EXIT = re.compile(
    rb"(\x8b[\x80-\x87].{4}\x89\xc2)"  # mov event_mask, %eax; mov %eax, %edx
    rb"\x83\xca\x04"  # or $BX_EVENT_INIT, %edx
    rb"(\x89[\x90-\x97].{4})",  # mov %edx, event_mask
    re.DOTALL,
)


def mended(program: bytes) -> bytes | None:
    """The program with external interrupts unmasked at a VM entry and masked at an exit, each in the place of INIT.

    Both are bits 10 and 11 of the same words: the instruction takes the next byte.  None where the code is not found
    exactly once.
    """

    def later(first: bytes) -> bytes:
        return bytes([first[0] + 1])

    if any(len(place.findall(program)) != 1 for place in (_ENTRY, _EXIT)):
        return None
    entry = _ENTRY.search(program)
    assert entry is not None
    if b"\xff" in (entry[2], entry[6]):
        return None
    unmask = b"\x80" + entry[1] + later(entry[2]) + entry[3] + b"\xf3"
    look = b"\xf6" + entry[5] + later(entry[6]) + entry[7] + b"\x0c"
    program = program[: entry.start()] + unmask + entry[4] + look + program[entry.end() :]
    return _EXIT.sub(lambda found: found[1] + b"\x80\xce\x0c" + found[2], program)  # or $0xc, %dh


def bochs() -> tuple[list[str], dict[str, str], Path]:
    """The command and environment of Bochs, unpacked in the cache, and the folder of its BIOS."""
    suite = Suite("trixie")
    folder = unpack_once(CACHE / "bochs", lambda target: suite.unpack((*PACKAGES, *LIBRARIES), target))
    libraries = folder / "usr/lib/x86_64-linux-gnu"
    loader = folder / "usr/lib64/ld-linux-x86-64.so.2"
    environment = {
        "LTDL_LIBRARY_PATH": str(libraries / "bochs/plugins"), "BXSHARE": str(folder / "usr/share/bochs"), "TERM": "vt100",
        "HOME": "/nonexistent",
    }  # fmt: skip
    program = mended_copy(folder / "usr/bin/bochs-bin", mended, "L1 may hang with a guest that spins with interrupts off")
    command = [str(loader), "--library-path", str(libraries), str(program)]
    return command, environment, folder / "usr/share/bochs"


class _Ram:
    """L1's RAM as far as it is there at its start."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.data = bytearray()

    def write(self, gpa: int, data: bytes | memoryview) -> None:
        start = gpa - LOADED_AT
        self.data.extend(bytes(max(start + len(data) - len(self.data), 0)))
        self.data[start : start + len(data)] = data

    def take(self, gpa: int, other: HostMemory, start_bytes: int, size_bytes: int) -> None:
        self.write(gpa, other.view[start_bytes : start_bytes + size_bytes])

    def map(self) -> list[MemmapEntry]:
        end = self.size_bytes - ACPI_BYTES
        return [
            MemmapEntry(0, 0x9F000, E820.RAM),
            MemmapEntry(1 << 20, end - (1 << 20), E820.RAM),
            MemmapEntry(end, ACPI_BYTES, E820.ACPI),
        ]

    @property
    def low_ram_bytes(self) -> int:
        return self.size_bytes - ACPI_BYTES


def loaded(kernel: Kernel, size_bytes: int, mips: int) -> tuple[bytes, bytes]:
    """The option ROM, and what it is to read into RAM."""
    files = boot_files(kernel, MODULES, ARGUMENTS)
    ram = _Ram(size_bytes)
    image = ElfImage((files / "kernel").read_bytes(), f"L1's Linux {kernel.name}")
    initramfs = pvh.Module("initramfs", memoryview((files / "initramfs").read_bytes()))
    command_line = f"{KERNEL_COMMAND_LINE} {COMMAND_LINE.format(khz=mips * 1000)}"
    entry = pvh.load(ram, image, command_line, [initramfs], rsdp=0)
    block = 128 * SECTOR
    ram.data.extend(bytes(-len(ram.data) % block))
    key = hashlib.sha256((HERE / "loader.S").read_bytes()).hexdigest()[:12]
    rom = bytearray((unpack_once(CACHE / f"l1-loader-{key}", _assemble) / "rom").read_bytes())
    first = TABLE_BYTES // SECTOR
    struct.pack_into("<5I", rom, _LOADER_TABLE, first, LOADED_AT, len(ram.data) // SECTOR, entry.eip, entry.ebx)
    rom[-1] = -sum(rom) & 0xFF
    return bytes(rom), bytes(ram.data)


def _assemble(folder: Path) -> None:
    for command in (
        ["as", "--32", "-o", "loader.o", HERE / "loader.S"],
        ["ld", "-m", "elf_i386", "-Ttext", "0xd0000", "-o", "loader", "loader.o"],
        ["objcopy", "-O", "binary", "-j", ".text", "loader", "rom"],
    ):
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise FetchError(f"{command[0]} is not installed; run scripts/setup first") from None
        if done.returncode != 0:
            raise FetchError(f"cannot assemble ci/loader.S: {done.stderr.strip()}")


def first_disk(folder: Path, head: bytes, images: list[Path]) -> None:
    """The pieces of the first disk, `disk0` and so on, one behind another: the table and `head`, then the partitions."""
    head += bytes(-len(head) % TABLE_BYTES)
    table = bytearray(TABLE_BYTES)
    at = (TABLE_BYTES + len(head)) // SECTOR
    for number, image in enumerate(images):
        sectors = image.stat().st_size // SECTOR
        struct.pack_into("<B3sB3sII", table, 446 + 16 * number, 0, b"\0\0\0", 0x83, b"\0\0\0", at, sectors)
        at += sectors
        (folder / f"disk{number + 1}").symlink_to(image)
    table[510:512] = b"\x55\xaa"
    (folder / "disk0").write_bytes(bytes(table) + head)


def configuration(folder: Path, share: Path, memory_bytes: int, smp: int, mips: int, line: str, *, out: bool) -> str:
    """Bochs's own."""
    lines = [
        "config_interface: textconfig",
        "display_library: term",
        f"cpu: model=corei7_skylake_x, count={smp}, ips={mips * 1_000_000}, reset_on_triple_fault=0, ignore_bad_msrs=1",
        f"memory: guest={memory_bytes >> 20}, host={memory_bytes >> 20}",
        f"romimage: file={share}/BIOS-bochs-latest",
        f"vgaromimage: file={share}/VGABIOS-lgpl-latest",
        f"optromimage1: file={folder}/rom, address=0xd0000",
        "ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14",
        "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15",
        f"ata0-master: type=disk, mode=concat, path={folder}/disk0, cylinders=0",
        f"ata0-slave: type=disk, mode=flat, path={folder}/channel, cylinders=0",
        f"com1: enabled=1, mode=file, dev={folder}/console",
        f"com2: enabled=1, mode=term, dev={line}",
        "boot: disk",
        "clock: sync=none, time0=utc",
        "panic: action=fatal",
        "error: action=ignore",
        "info: action=ignore",
        f"log: {folder}/log",
    ]
    if out:
        lines.append(f"ata1-master: type=disk, mode=flat, path={folder}/outdisk, cylinders=0")
    return "\n".join(lines) + "\n"


class Channel:
    """The job's output, as l1-relay writes it."""

    def __init__(self, path: Path) -> None:
        with path.open("wb") as made:
            made.truncate(CHANNEL_BYTES)
        self._file = path.open("rb", buffering=0)
        self._number = self._at = 0
        self.status: int | None = None

    def poll(self) -> bool:
        """Pass on the next frame, if it is there."""
        head = os.pread(self._file.fileno(), _FRAME.size, self._at)
        mark, stream, number, length = _FRAME.unpack(head)
        if mark != _MARK or number != self._number + 1:
            return False
        size = -(-(_FRAME.size + length + 4) // SECTOR) * SECTOR
        frame = os.pread(self._file.fileno(), size, self._at)
        if int.from_bytes(frame[-4:], "little") != number:
            return False
        data = memoryview(frame)[_FRAME.size : _FRAME.size + length]
        if stream == _STATUS:
            self.status = int(bytes(data))
        while stream != _STATUS and data:
            try:
                data = data[os.write(stream, data) :]
            except OSError:
                break
        self._number, self._at = number, self._at + size
        return True


def feed(line: int, leave: Callable[[], None] | None) -> None:
    """Pass standard input on, once L1 is ready for it; from a raw terminal, Ctrl-] calls `leave`."""

    def send(data: bytes) -> None:
        for start in range(0, len(data), 4096):
            piece = data[start : start + 4096]
            rest = memoryview(len(piece).to_bytes(2, "little") + piece)
            while rest:
                rest = rest[os.write(line, rest) :]

    def copy() -> None:
        try:
            os.read(line, 1)
            while chunk := os.read(0, 65536):
                if leave is not None and ESCAPE in chunk:
                    leave()
                    return
                send(chunk)
            os.write(line, b"\0\0")
        except OSError:
            pass

    threading.Thread(target=copy, daemon=True).start()


def _bytes(text: str) -> int:
    units = {"K": 10, "M": 20, "G": 30}
    try:
        size = int(text.rstrip("KMG")) << units[text[-1]] if text[-1:] in units else int(text) << 20
    except ValueError:
        raise FetchError(f"--memory is {text!r}, where a size belongs, as in 2G") from None
    if not 512 << 20 <= size <= 3 << 30:
        raise FetchError(f"--memory is {text}; an L1 in Bochs has from 512M to 3G")
    return size


def run(options: argparse.Namespace, folder: Path) -> int:
    """The job, in an L1 whose files are in `folder`: its exit status."""
    deadline = time.monotonic() + options.timeout
    memory_bytes, mips = _bytes(options.memory or MEMORY), options.mips or MIPS
    command, environment, share = bochs()
    kernel = Kernel(options.kernel + "-generic").fetch()
    out = Path(options.out).resolve() if options.out else None
    compile_ahead(options.command)
    write_job(folder, options.command, out)
    rom, head = loaded(kernel, memory_bytes, mips)
    (folder / "rom").write_bytes(rom)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        pack.make(out, folder / "outdisk", OUT_ROOM_BYTES, "has_journal")
    pack.job(folder, out, folder / "job.ext4")
    first_disk(folder, head, [pack.base(), pack.environment(), folder / "job.ext4"])
    channel = Channel(folder / "channel")
    line, line_far = os.openpty()
    tty.setraw(line)
    (folder / "bochsrc").write_text(
        configuration(folder, share, memory_bytes, options.smp or SMP, mips, os.ttyname(line_far), out=out is not None)
    )
    screen, screen_far = os.openpty()
    machine = subprocess.Popen(
        [*command, "-q", "-f", str(folder / "bochsrc")], env=environment, cwd=folder,
        stdin=screen_far, stdout=screen_far, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    os.close(screen_far)
    threading.Thread(target=_drain, args=(screen,), daemon=True).start()
    before = termios.tcgetattr(0) if options.tty else None
    if options.tty:
        tty.setraw(0)
    feed(line, machine.kill if options.tty else None)
    try:
        while machine.poll() is None and channel.status is None:
            if not channel.poll():
                time.sleep(POLL_S)
            if time.monotonic() > deadline:
                print(f"{PROGRAM}: stopped after {options.timeout:g} s", file=sys.stderr)
                return TIMED_OUT
        while channel.poll():
            pass
    finally:
        machine.kill()
        machine.wait()
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        if out is not None:
            pack.unpack(folder / "outdisk", out)
    if channel.status is not None:
        return channel.status
    return explain(f"L1 (Linux {options.kernel})", (folder / "log", folder / "console"))


def _drain(screen: int) -> None:
    while True:
        try:
            if not os.read(screen, 65536):
                return
        except OSError:
            return
