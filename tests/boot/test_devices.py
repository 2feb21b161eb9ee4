"""Disks, network cards and shared folders of stock Debian kernels, and what other commands do to a running guest."""

import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.boot.session import TIMEOUT_S, session, shell
from tests.boot.storetree import differences, tree_of
from vmm.kvm import System

SECTOR = 512
LONG = "PYVMM_LONG" in os.environ
"""Whether there is time: ten thousand files, five minutes of verified writes."""

FILES, VERIFY_S = (10_000, 300) if LONG else (40, 5)


def pattern(path: Path, mib: int) -> Path:
    """A file that tells its sectors apart."""
    with path.open("wb") as file:
        for number in range(mib * 2048):
            file.write(number.to_bytes(8, "little") * 64)
    return path


@contextmanager
def small_filesystem(place: Path) -> Iterator[Path]:
    """A file system of a mebibyte."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@contextmanager
def device_with_bad_sectors(file: Path, bad: range) -> Iterator[Path]:
    """A block device over a file, some sectors of which cannot be read or written (device mapper's target `error`)."""
    loop = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True, check=True).stdout.strip()
    table = "".join(
        f"{part.start} {len(part)} {f'linear {loop} {part.start}' if part is not bad else 'error'}\n"
        for part in (range(bad.start), bad, range(bad.stop, file.stat().st_size // SECTOR))
    )
    try:
        subprocess.run(["dmsetup", "create", "--noudevsync", "pyvmm-bad"], input=table, text=True, check=True)
        ask = ["dmsetup", "info", "-c", "--noheadings", "-o", "blkdevname", "pyvmm-bad"]
        yield Path("/dev") / subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
        subprocess.run(["dmsetup", "remove", "--noudevsync", "--retry", "pyvmm-bad"], check=True)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


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
        guest.ask("detach-disk", device="xvdb")
        guest.run("while [ -e /dev/xvdb ]; do sleep 0.2; done")

        number = guest.ask("attach-net", spec="tap")
        guest.run("while [ ! -e /sys/class/net/eth1 ]; do sleep 0.2; done")
        guest.ask("detach-net", device=number)
        guest.run("while [ -e /sys/class/net/eth1 ]; do sleep 0.2; done")

        assert guest.run("grep -m1 '^model name' /proc/cpuinfo") in Path("/proc/cpuinfo").read_text()
        assert guest.run("nproc") == "1\n"
        guest.ask("set-vcpus", count=2)
        online = "/sys/devices/system/cpu/cpu1/online"  # which udev writes, where there is one
        guest.run(f"while ! echo 1 >{online}; do sleep 0.2; done 2>/dev/null")
        assert guest.run("nproc") == "2\n"
        guest.ask("set-vcpus", count=1)
        guest.run("while [ $(nproc) != 1 ]; do sleep 0.2; done")
        guest.ask("set-memory", size="200M")
        deadline = time.monotonic() + 60
        while guest.ask("status")[0]["memory_mib"] > 200 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert guest.ask("status")[0]["memory_mib"] <= 200

        with small_filesystem(tmp_path / "full") as full:
            crowded = full / "disk"
            crowded.touch()
            os.truncate(crowded, 8 << 20)
            guest.ask("attach-disk", spec=str(crowded))
            guest.run("while [ ! -e /dev/xvdb ]; do sleep 0.2; done")
            guest.run("! dd if=/dev/zero of=/dev/xvdb bs=64k count=100 conv=fsync 2>/dev/null")
            guest.run("dd if=/dev/xvda of=/dev/null bs=64k iflag=direct 2>/dev/null")  # its neighbour goes on
            guest.ask("detach-disk", device="xvdb")
            guest.run("while [ -e /dev/xvdb ]; do sleep 0.2; done")
        with device_with_bad_sectors(pattern(tmp_path / "bad", 2), range(1024, 1032)) as bad:
            guest.ask("attach-disk", spec=f"{bad},direct")
            guest.run("while [ ! -e /dev/xvdb ]; do sleep 0.2; done")
            read, write = "dd bs=4096 count=1 iflag=direct of=/dev/null", "dd bs=4096 count=1 oflag=direct if=/dev/zero"
            for number, works in ((127, ""), (128, "! "), (129, "")):
                guest.run(f"{works}{read} if=/dev/xvdb skip={number} 2>/dev/null")
                guest.run(f"{works}{write} of=/dev/xvdb seek={number} 2>/dev/null")
            guest.run(f"{read} if=/dev/xvda 2>/dev/null")  # its neighbour goes on
            guest.ask("detach-disk", device="xvdb")
            guest.run("while [ -e /dev/xvdb ]; do sleep 0.2; done")
        os.truncate(disk, 1 << 20)
        guest.run("! dd if=/dev/xvda of=/dev/null bs=4096 skip=1024 count=1 iflag=direct 2>/dev/null")
        tap = next(Path("/sys/class/net/br-test/brif").iterdir()).name
        subprocess.run(["ip", "link", "del", tap], check=True)
        guest.run("while grep -q 1 /sys/class/net/eth0/carrier; do sleep 0.2; done 2>/dev/null")
        guest.ask("shutdown")
        assert guest.process.wait(60) == 0
        assert guest.process.stderr is not None
        errors = guest.process.stderr.read()
    assert "No space left on device" in errors
    assert "disk error" in errors
    assert f"the tap device {tap} is gone" in errors


def test_acknowledged_writes_survive_the_kill_of_pyvmm(
    kernel: Callable[[str], Path], system: System, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.touch()
    os.truncate(disk, 64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", disk], check=True)
    with session(kernel("--vmlinux 6.1"), "--modules", kernel("--modules 6.1"), "--disk", disk) as guest:
        shell(guest)
        guest.run("mount -t ext4 /dev/xvda /mnt")
        guest.type('n=0; while :; do n=$((n+1)); seq $n 2000 >/mnt/$n; sync; echo "done $n."; done\n')
        last = int(guest.expect(r"done ([4-9])\.")[1])
        guest.process.kill()
        guest.process.wait()
    assert subprocess.run(["e2fsck", "-fy", disk], capture_output=True, check=False).returncode in (0, 1)
    for number in range(1, last + 1):
        found = subprocess.run(["debugfs", "-R", f"cat /{number}", disk], capture_output=True, text=True, check=True)
        assert found.stdout == "".join(f"{line}\n" for line in range(number, 2001)), number


def test_debian_boots_from_a_qcow2_disk_to_its_login_prompt(
    kernel: Callable[[str], Path], rootfs: Path, system: System, tmp_path: Path
) -> None:
    disk = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", rootfs, disk], check=True)
    options = ("--modules", kernel("--modules 6.1"), "--disk", f"{disk},format=qcow2")
    with session(kernel("--vmlinux 6.1"), *options, append="root=/dev/xvda rw") as guest:
        guest.expect("debian-12 login: ", 6 * TIMEOUT_S)  # two L1s share the machine
        guest.type("root\n")
        guest.expect("# ")
        guest.type("exec sh\n")
        shell(guest)
        assert guest.run("grep -c ' / ext4 rw' /proc/mounts") == "1\n"
        guest.run("cp -a /usr/share/perl5 /root/copy && sync && echo 3 >/proc/sys/vm/drop_caches")
        guest.run("diff -r /usr/share/perl5 /root/copy")
        guest.ask("shutdown")
        guest.expect("Power down")
        assert guest.process.wait(60) == 0
    plain = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", disk, plain], check=True)
    assert subprocess.run(["e2fsck", "-fn", plain], capture_output=True, check=False).returncode == 0


def test_programs_of_the_host_run_on_its_devices(kernel: Callable[[str], Path], system: System) -> None:
    # In a tmpfs, since diod refuses files of an overlay whose layers are of several file systems, as /tmp is in L1.
    with TemporaryDirectory(dir="/dev/shm") as folder:
        _use_devices(kernel("6.1-generic"), Path(folder))


def _use_devices(image: Path, folder: Path) -> None:
    shared, disk = folder / "shared", folder / "disk"
    for number in range(FILES):
        place = shared / str(number % 17) / str(number % 5)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file {number}").write_bytes(hashlib.sha256(str(number).encode()).digest() * (number % 100))
    pattern(disk, 64)
    for command in (  # somewhere for passt to take its addresses from
        "tuntap add dev outside mode tap", "addr add 10.8.0.1/24 dev outside", "link set outside up",
        "route add default via 10.8.0.2",
    ):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True)
    with (
        subprocess.Popen(["iperf3", "--server", "--forceflush"], stdout=subprocess.DEVNULL) as server,
        session(
            image, "--root", "host", "--share", f"{shared},tag=tree", "--disk", disk, "--net", "tap:inside",
            "--net", "user",
        ) as guest,
    ):  # fmt: skip
        shell(guest)
        subprocess.run(["ip", "addr", "add", "10.9.0.1/24", "dev", "inside"], check=True)
        guest.run("mkdir /tmp/m && mount -t 9p -o trans=xen,version=9p2000.L tree /tmp/m")
        tree = "find . -type f -print0 | sort -z | xargs -0 sha256sum"
        expected = subprocess.run(tree, shell=True, cwd=shared, capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(expected.encode()).hexdigest()
        assert guest.run(f"cd /tmp/m; {tree} | sha256sum; cd /", 600).startswith(digest)
        guest.run("cp -r /tmp/m/3 /tmp/m/copied")
        assert not subprocess.run(["diff", "-r", shared / "3", shared / "copied"], check=False).returncode

        job = "--name=v --filename=/dev/xvda --size=48M --rw=randrw --bsrange=512-64k --direct=1 --verify=crc32c"
        queue = f"--ioengine=libaio --iodepth=8 --time_based --runtime={VERIFY_S}"
        guest.run(f"fio {job} {queue} >/tmp/fio 2>&1 || (cat /tmp/fio; false)", VERIFY_S + 200)
        guest.run("ip addr add 10.9.0.2/24 dev eth0 && ip link set eth0 up")
        for address in ("10.9.0.1", "10.8.0.2"):  # the tap's end; the host, as passt shows it to the guest
            for direction in ("", "--reverse"):
                report = guest.run(f"iperf3 --client {address} --time 2 --json {direction} --connect-timeout 9000")
                assert json.loads(report)["end"]["sum_received"]["bytes"] > 0
        server.kill()

        helpers = {name: _child(guest.process.pid, name) for name in ("diod", "passt")}
        for helper in helpers.values():
            os.kill(helper, signal.SIGKILL)
        guest.run("echo goes on")
        guest.ask("destroy")
        assert guest.process.wait(60) == 130
        assert guest.process.stderr is not None
        errors = guest.process.stderr.read()
    for name in helpers:
        assert f"{name} has ended with SIGKILL" in errors


def _child(parent: int, name: str) -> int:
    """The newest child process of that name."""
    found = subprocess.run(["pgrep", "-n", "-P", str(parent), name], capture_output=True, text=True, check=True)
    return int(found.stdout)
