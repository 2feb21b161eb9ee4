"""What an L1 is made of, whichever machine it runs in: its kernel and initramfs, its job, and the streams to and fro."""

import hashlib
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from debian import CACHE, ROOT, Kernel, busybox, unpack_once

from vmm.boot.cpio import CpioWriter
from vmm.boot.modules import ModuleFolder

HERE = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
KERNEL_COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr tsc=reliable random.trust_cpu=on"
    " audit=0 lsm=capability apparmor=0 cryptomgr.notests"  # what only costs time
)
FAILED_L1 = 125
TIMED_OUT = 124
PROGRAM = f"ci/{Path(sys.argv[0]).name}"
"""Who speaks."""


def boot_files(kernel: Kernel, modules: Iterable[str], arguments: dict[str, str]) -> Path:
    """A folder with L1's `kernel` and `initramfs`, made once; `arguments` are the modules' own, by their names."""
    modules = tuple(modules)
    init = (HERE / "l1-init").read_bytes()
    key = hashlib.sha256(init + repr((modules, arguments)).encode() + str(kernel.image).encode()).hexdigest()[:12]

    def fill(folder: Path) -> None:
        archive = CpioWriter()
        for place in ("bin", "dev", "modules"):
            archive.folder(place)
        archive.character_device("dev/console", 5, 1)
        archive.character_device("dev/kmsg", 1, 11)
        archive.file("bin/busybox", busybox().read_bytes(), 0o755)
        archive.file("init", init, 0o755)
        order = []
        for name, content in ModuleFolder(kernel.modules).closure(modules):
            archive.file(f"modules/{name}", content)
            order.append(f"{name} {arguments.get(name.partition('.')[0].replace('-', '_'), '')}".rstrip())
        archive.file("modules/order", "\n".join(order).encode() + b"\n")
        (folder / "initramfs").write_bytes(archive.finish())
        (folder / "kernel").write_bytes(plain_kernel(kernel))

    return unpack_once(CACHE / f"l1-{kernel.name}-{key}", fill)


def plain_kernel(kernel: Kernel) -> bytes:
    """The ELF inside the bzImage, which QEMU enters by PVH: unpacking it under TCG would take seconds.

    Where the decompressor's library is not installed, the bzImage as it is.
    """
    try:
        return kernel.vmlinux.read_bytes()
    except ImportError:
        return kernel.image.read_bytes()


def mended_copy(original: Path, mend: Callable[[bytes], bytes | None], risk: str) -> Path:
    """A machine's program in the cache, a fault of its own mended; as it is, and said so, where `mend` finds no place."""

    def fill(folder: Path) -> None:
        program = original.read_bytes()
        found = mend(program)
        if found is None:
            print(f"{PROGRAM}: the place to mend was not found in {original.name}; {risk}", file=sys.stderr)
        (folder / original.name).write_bytes(found or program)
        (folder / original.name).chmod(0o755)

    key = hashlib.sha256(f"{original.stat().st_size} {original.stat().st_mtime:.0f}".encode()).hexdigest()[:12]
    return unpack_once(CACHE / f"{original.name}-mended-{key}", fill) / original.name


def compile_ahead(command: list[str]) -> None:
    """Make the byte code of the checkout, and of what pytest rewrites: L1 would make it at each start, and not keep it."""
    python = VENV / "bin/python"
    words = [["compileall", "-q", ROOT / "vmm"]]
    if any("pytest" in word for word in command):
        words.append(["pytest", "--collect-only", "-q", "-p", "no:cacheprovider", ROOT / "tests"])
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for module in words if python.exists() else []:
        subprocess.run(
            [python, "-m", *module], cwd=ROOT, env=environment, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def write_job(folder: Path, command: list[str], out: Path | None) -> None:
    """The shell script that L1 runs, and where its output folder is."""
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in os.environ.items() if name.isidentifier()]
    lines.append(f"export PATH={shlex.quote(str(VENV / 'bin'))}:$PATH\n")  # `pyvmm` and `pytest` are this checkout's
    smaller = CACHE / "busybox-i386/bin/busybox"
    if smaller.exists() and "PYVMM_BUSYBOX" not in os.environ:
        lines.append(f"export PYVMM_BUSYBOX={shlex.quote(str(smaller))}\n")  # for 32-bit kernels
    lines += [f"cd {shlex.quote(os.getcwd())} || exit 125\n", f"exec {shlex.join(command)}\n"]
    (folder / "job").write_text("".join(lines))
    if out is not None:
        (folder / "out").write_text(str(out))


def pump(source: int, target: int) -> threading.Thread:
    def copy() -> None:
        while chunk := os.read(source, 65536):
            view = memoryview(chunk)
            while view:
                try:
                    view = view[os.write(target, view) :]
                except OSError:
                    return

    thread = threading.Thread(target=copy, daemon=True)
    thread.start()
    return thread


def explain(machine: str, logs: Iterable[Path]) -> int:
    """The machine ended without the job's status: say so, and how its logs end."""
    print(f"{PROGRAM}: {machine} ended without running the command to its end", file=sys.stderr)
    for log in logs:
        if log.exists():
            for line in log.read_text(errors="replace").splitlines()[-30:]:
                print(f"  {line}", file=sys.stderr)
    return FAILED_L1
