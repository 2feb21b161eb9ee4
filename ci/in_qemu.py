"""L1 in QEMU, over this machine's file system: with the host's own KVM where that nests, else emulated, with AMD-V.

QEMU is version 10 from the backports suite, since 7.2 gets XSAVE wrong in nested guests.

Its VMRUN is mended on the way.  QEMU 10.0 to 11.1 note the vector of an injected interrupt as an exception yet to be taken
(svm_helper.c, `helper_vmrun`, SVM_EVTINJ_TYPE_INTR), although they have just delivered it, and deliver it again when the
CPU next leaves its loop without an exit of the guest, even where the guest has interrupts off.  Guests of L1 then hang or
crash: Debian 5.10 with one vCPU in one boot of ten, with two in every second.
"""

import argparse
import fcntl
import os
import platform
import re
import socket
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable
from pathlib import Path

from debian import CACHE, Kernel, Suite, unpack_once
from l1 import KERNEL_COMMAND_LINE, PROGRAM, TIMED_OUT, boot_files, compile_ahead, explain, mended_copy, pump, write_job

MODULES = (
    "virtio_pci", "9pnet_virtio", "9p", "virtio_console", "overlay", "tun", "bridge", "loop", "dm-mod",
    "kvm-amd", "kvm-intel",
)  # fmt: skip
BOARD = "q35,smm=off,usb=off,vmport=off"
CPU = "max,+svm,-la57"
MEMORY = "8G"
SMP = 2
ESCAPE = b"\x1d"  # Ctrl-]

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
    """The command and environment of QEMU 10, mended, in the cache."""
    folder = unpacked_qemu("bookworm-backports", "qemu")
    program = mended_copy(folder / "usr/bin/qemu-system-x86_64", mended, "guests in L1 may hang")
    return qemu_command(folder, program)


def unpacked_qemu(suite_name: str, place: str) -> Path:
    """The folder in the cache with a suite's QEMU."""
    suite = Suite(suite_name)
    return unpack_once(CACHE / place, lambda target: suite.unpack(suite.with_dependencies("qemu-system-x86"), target))


def qemu_command(folder: Path, program: Path) -> tuple[list[str], dict[str, str]]:
    """The command and environment of a QEMU that is unpacked in a folder."""
    libraries = f"{folder}/usr/lib/x86_64-linux-gnu:{folder}/lib/x86_64-linux-gnu"
    environment = dict(os.environ, LD_LIBRARY_PATH=libraries, QEMU_MODULE_DIR=f"{folder}/usr/lib/x86_64-linux-gnu/qemu")
    return [str(program), "-L", f"{folder}/usr/share/qemu", "-L", f"{folder}/usr/share/seabios"], environment


def nested_kvm() -> bool:
    """Whether this machine's own KVM gives its guests VT-x or AMD-V."""
    if platform.machine() != "x86_64" or not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    if not {"vmx", "svm"} & set(Path("/proc/cpuinfo").read_text().split()):
        return False
    switches = [Path(f"/sys/module/kvm_{vendor}/parameters/nested") for vendor in ("intel", "amd")]
    return any(switch.exists() and switch.read_text().strip() in ("1", "Y") for switch in switches)


def unread(sender: socket.socket) -> int:
    """Bytes that the other end of a socket has yet to read."""
    return int.from_bytes(fcntl.ioctl(sender, termios.TIOCOUTQ, bytes(4)), sys.byteorder)


def feed(target: socket.socket, leave: Callable[[], None] | None) -> None:
    """Pass standard input on; from a raw terminal, Ctrl-] calls `leave`."""

    def copy() -> None:
        try:
            while chunk := os.read(0, 65536):
                if leave is not None and ESCAPE in chunk:
                    leave()
                    return
                target.sendall(chunk)
            while unread(target):  # QEMU forgets what L1 has not taken yet when the other end hangs up
                time.sleep(0.05)
            target.close()
        except OSError:
            pass

    threading.Thread(target=copy, daemon=True).start()


def run(options: argparse.Namespace, folder: Path) -> int:
    """The job, in an L1 whose files are in `folder`: its exit status."""
    kernel = Kernel(options.kernel + "-generic").fetch()  # the cloud flavours have no 9p
    files = boot_files(kernel, MODULES, {})
    compile_ahead(options.command)
    # One thread for all CPUs: with one each, QEMU 10 still crashes guests once two CPUs are in nested guests at a time.
    accelerate = (
        ["-accel", "kvm", "-cpu", "host"]
        if nested_kvm()
        else ["-accel", "tcg,thread=single", "-cpu", ",".join([CPU, *options.cpu_flags])]
    )
    command, environment = qemu()
    command += [
        "-M", BOARD, *accelerate, "-smp", str(options.smp or SMP),
        "-m", options.memory or MEMORY,
        "-kernel", str(files / "kernel"), "-initrd", str(files / "initramfs"),
        "-append", f"{KERNEL_COMMAND_LINE} 8250.nr_uarts=1",
    ]  # fmt: skip
    return carry_out(options, folder, f"L1 (Linux {options.kernel})", command, environment)


def carry_out(
    options: argparse.Namespace,
    folder: Path,
    name: str,
    command: list[str],
    environment: dict[str, str],
    over: Path | None = None,
    device: str = "",
) -> int:
    """Run QEMU, whose Linux runs the job over this machine's file system, with its streams: the job's exit status.

    `options` has command, out, timeout and tty; `over` is a folder for l1-init to lay over the root; `device` is added to
    each virtio device's options.
    """
    out = Path(options.out).resolve() if options.out else None
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    write_job(folder, options.command, out)
    stdout, stderr = os.pipe(), os.pipe()
    stdin, stdin_far = socket.socketpair()
    shares = {"root": ("/", ",readonly=on"), "job": (str(folder), "")}
    if out is not None:
        shares["out"] = (str(out), "")
    if over is not None:
        shares["over"] = (str(over), ",readonly=on")
    command = [
        *command, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", f"file:{folder}/console",
        "-device", f"virtio-rng-pci{device}",
        "-device", f"virtio-serial-pci{device}",
        "-chardev", f"socket,id=stdin,fd={stdin_far.fileno()}",
        "-chardev", f"file,id=stdout,path=/dev/fd/{stdout[1]}",
        "-chardev", f"file,id=stderr,path=/dev/fd/{stderr[1]}",
    ]  # fmt: skip
    for stream in ("stdin", "stdout", "stderr"):
        command += ["-device", f"virtserialport,chardev={stream},name={stream}"]
    for tag, (path, flags) in shares.items():
        command += ["-fsdev", f"local,id={tag},path={path},security_model=none,multidevs=remap{flags}"]
        command += ["-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}{device}"]
    inherited = (stdin_far.fileno(), stdout[1], stderr[1])
    machine = subprocess.Popen(
        command, env=environment, pass_fds=inherited, stdin=subprocess.DEVNULL,
        stdout=(folder / "qemu").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    for fd in (stdout[1], stderr[1]):
        os.close(fd)
    stdin_far.close()
    pumps = [pump(stdout[0], 1), pump(stderr[0], 2)]
    before = termios.tcgetattr(0) if options.tty else None
    if options.tty:
        tty.setraw(0)
    feed(stdin, machine.kill if options.tty else None)
    try:
        machine.wait(options.timeout)
    except subprocess.TimeoutExpired:
        print(f"{PROGRAM}: stopped after {options.timeout:g} s", file=sys.stderr)
        return TIMED_OUT
    finally:
        machine.kill()
        machine.wait()
        if before is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
        for thread in pumps:
            thread.join(5)
    status = folder / "status"
    if status.exists() and status.read_text().strip():
        return int(status.read_text())
    return explain(name, (folder / "qemu", folder / "console"))
