"""Disks, network cards and shared folders of stock Debian kernels, and what other commands do to a running guest."""

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.boot.session import session, shell
from tests.boot.storetree import differences, tree_of
from vmm.kvm import System

SECTOR = 512


def pattern(path: Path, mib: int) -> Path:
    """A file that tells its sectors apart."""
    with path.open("wb") as file:
        for number in range(mib * 2048):
            file.write(number.to_bytes(8, "little") * 64)
    return path


def test_devices_come_and_go_under_a_running_guest(kernel: Callable[[str], Path], system: System, tmp_path: Path) -> None:
    disk, second, store = pattern(tmp_path / "disk", 8), pattern(tmp_path / "second", 4), tmp_path / "store"
    modules = kernel("--modules 6.1")
    subprocess.run(["ip", "link", "add", "br-test", "type", "bridge"], check=True)
    with session(
        kernel("--vmlinux 6.1"), "--modules", modules, "--disk", disk, "--net", "bridge:br-test,mac=00:16:3e:00:00:01",
        "-m", 256, "--max-vcpus", 2, "--xenstore", store,
    ) as guest:  # fmt: skip
        shell(guest)
        assert "xvda" in guest.run("cat /proc/partitions")
        assert guest.run("md5sum </dev/xvda").startswith(hashlib.md5(disk.read_bytes()).hexdigest())
        guest.run("printf rewritten | dd of=/dev/xvda bs=512 seek=3 conv=sync,fsync 2>/dev/null")
        assert disk.read_bytes()[3 * SECTOR : 4 * SECTOR] == b"rewritten".ljust(SECTOR, b"\0")
        problems = differences(tree_of(store))
        assert not problems, "\n".join(problems)

        assert guest.ask("attach-disk", spec=f"{second},ro") == "xvdb"
        guest.run("while [ ! -e /dev/xvdb ]; do sleep 0.2; done")
        assert guest.run("md5sum </dev/xvdb").startswith(hashlib.md5(second.read_bytes()).hexdigest())
        assert "1" in guest.run("cat /sys/block/xvdb/ro")
        guest.ask("detach-disk", name="xvdb")
        guest.run("while [ -e /dev/xvdb ]; do sleep 0.2; done")

        number = guest.ask("attach-net", spec="tap")
        guest.run("while [ ! -e /sys/class/net/eth1 ]; do sleep 0.2; done")
        guest.ask("detach-net", number=number)
        guest.run("while [ -e /sys/class/net/eth1 ]; do sleep 0.2; done")

        assert guest.run("nproc") == "1\n"
        guest.ask("set-vcpus", count=2)
        online = "/sys/devices/system/cpu/cpu1/online"  # which udev writes, where there is one
        guest.run(f"while ! echo 1 >{online}; do sleep 0.2; done 2>/dev/null")
        assert guest.run("nproc") == "2\n"
        guest.ask("set-vcpus", count=1)
        guest.run("while [ $(nproc) != 1 ]; do sleep 0.2; done")
        guest.ask("set-memory", size="200M")
        deadline = time.monotonic() + 60
        while guest.ask("status")["memory_mib"] > 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert guest.ask("status")["memory_mib"] <= 200
        guest.ask("shutdown")
        assert guest.process.wait(60) == 0
