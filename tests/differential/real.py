"""A real Xen that carries out programs, one guest after another, for as long as it is open."""

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.differential.programs import MEMORY_MIB

ROOT = Path(__file__).resolve().parents[2]
GUEST_S = 60
"""How long one guest may take."""

_LOOP = r"""
while read -r module; do
    cat >/run/guest.cfg <<END
name = "programs"
type = "pvh"
kernel = "$1/guest"
ramdisk = "$module"
memory = $2
vcpus = 1
tsc_mode = "native"
END
    for end in poweroff reboot crash watchdog; do echo "on_$end = \"preserve\"" >>/run/guest.cfg; done
    timeout $3 $4 /run/guest.cfg programs "" >"$module.console" 2>"$module.errors"
    status=$?
    [ $status = 124 ] && { xl destroy programs; pkill -x xl; echo "it did not end" >>"$module.errors"; }
    echo $status
done
"""


class XenEnded(Exception):
    """Xen did not come up, or is gone."""


class RealXen:
    """Xen in QEMU.  XenEnded at the first guest where it did not come up."""

    def __init__(self, image: Path, version: str = "4.17", log: Path | None = None) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="programs-", dir="/var/tmp"))
        shutil.copy(image, self._folder / "guest")
        command = [str(ROOT / "ci/real-xen"), "--version", version, "--timeout", "86400", "--out", str(self._folder)]
        command += ["--log", str(log)] if log else []
        loop = ["sh", "-c", _LOOP, "sh", str(self._folder), str(MEMORY_MIB), str(GUEST_S), str(ROOT / "ci/real-xen-guest")]
        self._process = subprocess.Popen([*command, "--", *loop], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._count = 0
        self.errors = ""

    def __str__(self) -> str:
        return "Xen"

    def run(self, module: bytes) -> str:
        """What a guest with these programs prints, until it ends."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._count += 1
        path = self._folder / f"module-{self._count}"
        path.write_bytes(module)
        try:
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            answered = self._process.stdout.readline()
        except BrokenPipeError:
            answered = ""
        if not answered:
            raise XenEnded("real Xen ended before the guest did; what ci/real-xen says of it stands above")
        console = path.with_name(path.name + ".console").read_text(errors="replace")
        self.errors = path.with_name(path.name + ".errors").read_text(errors="replace")
        return console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.terminate()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
