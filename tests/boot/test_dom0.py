"""Stock Debian as Xen's initial domain: what its kernel sees, what Xen's own tools in it print, and a guest beside it."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.boot.reference import FACTS, listed, normal, of_dom0, reference
from tests.boot.session import session, shell
from tests.boot.vchan import Kernels, carry
from tests.commands import pyvmm
from tests.guests import run
from vmm.boot.initramfs import busybox_initramfs
from vmm.boot.modules import ModuleFolder
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.config.features import COMBINATIONS
from vmm.kvm import System, XenFlag
from vmm.xenabi.constants import ShutdownReason

TIMEOUT_S = 480
BOOT_S = 1500
"""A whole distribution's, where another L1 and a slow host share the time."""
VCHAN_BYTES, VCHAN_ROUNDS = 1 << 20, 50

# Each command, and what it has to print: facts that pyvmm was given, or has from the machine.
TOOLS = {
    "cat /proc/xen/capabilities": [r"^control_d$"],
    "xen-detect": [r"^Running in PVH context on Xen V4\.17\.$"],
    "xl info": [
        r"^nr_cpus +: 2$",
        r"^xen_version +: 4\.17\.7$",
        r"^xen_scheduler +: unknown$",
        r"^virt_caps +: hvm hap gnttab-v1 gnttab-v2$",
        r"^total_memory +: \d{4}$",
        r"^xen_caps +: xen-3\.0-x86_64 hvm-3\.0-x86_32 hvm-3\.0-x86_32p hvm-3\.0-x86_64 $",
    ],
    "xl list": [r"^Domain-0 +0 +1023 +1 +r----- +\d+\.\d$"],
    "xl vcpu-list": [r"^Domain-0 +0 +0 +\d +r-- +\d+\.\d +all / all$"],
    "xl debug-keys qx": [],
    "xl dmesg": [
        r"^\(XEN\) \*\*\* Building a PVH Dom0 \*\*\*$",
        r"^\(XEN\) PCI add device 0000:00:00\.0$",
        r"^\(XEN\) 'q' pressed -> dump domain \(and guest debug\) info$",
        r"^\(XEN\)     nr_pages=262143 max_pages=262144$",
        r"^\(XEN\) 'x' pressed -> no handler$",
    ],
    "xenpm get-cpu-topology": [r"^CPU0\s+\d+\s+\d+\s+0$", r"^CPU1\s+\d+\s+\d+\s+0$"],
    "xenstore-ls /local/domain/0": [r'^name = "Domain-0"$'],
    "xl cpupool-list": [r"^Pool-0 +2 +unknown +y +1$"],
    "xl info -n": [r"^free_cpus +: 0$", r"^ +0: +0 +0 +0$"],
    "xentop -b -i 1": [r"^ +Domain-0 -----r +\d+ +0\.0 +1048572 "],
    # What pyvmm has not is refused, and the tools say so.
    "xl pause 0": [r"Pausing domain: Operation not supported$"],
    "xen-livepatch list": [r"^Error 95: Operation not supported$"],
    "xenlockprof": [r"Function not implemented"],
    "xl destroy 1": [r"Domain 1:Non-existant domain$"],
}


@pytest.fixture
def disk(dom0_rootfs: Path, tmp_path: Path) -> Path:
    """A disk of its own for a dom0."""
    copy = tmp_path / "dom0.ext4"
    subprocess.run(["cp", "--sparse=always", dom0_rootfs, copy], check=True)
    return copy


@pytest.fixture
def generic(kernel: Callable[[str], Path]) -> tuple[Path, Path]:
    """The kernel that boots as dom0, and its modules."""
    return kernel("--vmlinux 6.1-generic"), kernel("--modules 6.1-generic")


def test_debian_as_dom0_sees_what_it_sees_on_xen(generic: tuple[Path, Path], system: System) -> None:
    image, folder = generic
    modules = ModuleFolder(folder).closure(["xen_evtchn", "xen_gntdev", "xen_privcmd", "xenfs"])
    config = DomainConfig(
        image,
        command_line="console=hvc0 ignore_loglevel",
        memory_bytes=1536 << 20,
        features=COMBINATIONS["pvh-dom0"],
        own_xenstore=True,
    )
    ended = run(config, [Module("the initrd", memoryview(busybox_initramfs(FACTS, modules=modules)))], TIMEOUT_S)
    assert ended.outcome is not None, ended.console[-3000:]
    assert ended.outcome.reason is ShutdownReason.poweroff
    expected, shown, known = reference("reference-dom0.txt"), of_dom0(normal(ended.console)), listed()
    assert sorted(expected - shown) == sorted(known["Xen's dom0"])
    with_kvm_xen = XenFlag.INTERCEPT_HCALL in system.xen_flags()
    own = known["pyvmm's dom0"] | (set() if with_kvm_xen else known["pyvmm without KVM_XEN"])
    assert sorted(shown - expected) == sorted(own)
    assert set(ended.domain.unknown_hypercalls) <= {"platform_op.64", "mca"}  # Xen 4.17 knows none of these, either


def test_xens_own_tools_in_dom0_print_what_they_should(generic: tuple[Path, Path], disk: Path, system: System) -> None:
    image, folder = generic
    marks = "".join(f"echo '== {number}'; {command} 2>&1\n" for number, command in enumerate(TOOLS))
    done = pyvmm(
        "run", "--dom0", image, "--modules", folder, "-m", "1G", "--disk", disk, "--xenstore", "internal",
        "--append", "quiet root=/dev/vda rw", "--timeout", TIMEOUT_S,
        "--exec", f"PATH=$PATH:/usr/lib/xen-4.17/bin\n{marks}exit 42", timeout_s=TIMEOUT_S,
    )  # fmt: skip
    print(done.stdout)
    assert (done.returncode, done.stderr) == (42, "")
    parts = re.split(r"^== \d+$\n", done.stdout, flags=re.MULTILINE)[1:]
    for (command, patterns), printed in zip(TOOLS.items(), parts, strict=True):
        for pattern in patterns:
            assert re.search(pattern, printed, re.MULTILINE), (command, pattern, printed)


def test_debian_boots_from_its_disk_as_dom0_with_two_vcpus_and_powers_off(
    generic: tuple[Path, Path], disk: Path, system: System
) -> None:
    image, folder = generic
    options = ("--dom0", "--modules", folder, "-m", "1G", "-c", 2, "--disk", disk, "--net", "tap", "--xenstore", "internal")
    with session(image, *options, name="dom0", append="root=/dev/vda rw") as guest:
        guest.expect("debian-12 login: ", BOOT_S)
        guest.type("root\n")
        guest.expect(r"# ")
        guest.type("exec sh\n")  # no line editing
        shell(guest)
        assert guest.run("nproc") == "2\n"
        assert "vda" in guest.run("cat /proc/partitions")
        guest.run("ip link show eth0 || ip link show enp0s2")
        assert re.search(r"^Domain-0 +0 +1023 +2 ", guest.run("xl list"), re.MULTILINE)
        assert guest.ask("status")[0]["domid"] == 0
        guest.run("dd if=/dev/urandom of=/root/big bs=1M count=8 conv=fsync && cp /root/big /root/copy && sync")
        guest.run("echo 3 >/proc/sys/vm/drop_caches; cmp /root/big /root/copy")
        guest.ask("shutdown")  # by xenstore, which the kernel watches
        assert guest.process.wait(TIMEOUT_S) == 0
    checked = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_the_power_button_reaches_dom0s_kernel(generic: tuple[Path, Path], system: System) -> None:
    image, folder = generic
    with session(image, "--dom0", "--modules", folder, "-m", "512M", name="button") as guest:
        shell(guest)
        assert "Power Button" in guest.run("cat /proc/bus/input/devices")
        guest.run("grep -q ' 0 .*acpi$' /proc/interrupts")
        guest.ask("shutdown")  # its xenstore is its own, and nobody serves it: the button is pressed
        guest.run("until grep -q ' 1 .*acpi$' /proc/interrupts; do sleep 0.1; done")
        guest.type("poweroff -f\n")
        assert guest.process.wait(TIMEOUT_S) == 0


# ------------------------------------------------------------------------------------- a guest beside it

IDLE = "until xl list | grep -q '^beside .* -b----'; do sleep 0.2; done"  # it has booted, and waits

# 1,024 pages of the guest's kernel, mapped by privcmd as Xen's tools do it: its banner is another than dom0's own.
FOREIGN = r"""
python3 -c "
import ctypes
library = ctypes.CDLL('libxenforeignmemory.so.1')
library.xenforeignmemory_open.restype = library.xenforeignmemory_map.restype = ctypes.c_void_p
handle = ctypes.c_void_p(library.xenforeignmemory_open(None, 0))
pages = (ctypes.c_ulong * 1024)(*range(0x2000, 0x2400))
errors = (ctypes.c_int * 1024)()
place = library.xenforeignmemory_map(handle, 1, 1, ctypes.c_size_t(1024), pages, errors)
data = ctypes.string_at(place, 1024 * 4096)
print('errors:', set(errors), 'banner:', data[data.index(b'Linux version'):].split()[2].decode())
pages[0], pages[1] = 0x99999, 0x9999999
place = library.xenforeignmemory_map(handle, 1, 1, ctypes.c_size_t(2), pages, errors)
print('absent:', errors[:2])
"
uname -r
"""


def test_dom0s_xenstored_serves_a_guest_beside_it_and_a_vchan_carries_data_between_them(
    generic: tuple[Path, Path], kernel: Callable[[str], Path], disk: Path, tmp_path: Path, system: System
) -> None:
    kernels = Kernels(*generic, kernel("--vmlinux 6.1"), kernel("--modules 6.1"))
    done = carry(
        kernels,
        disk,
        tmp_path,
        bytes_sent=VCHAN_BYTES,
        rounds=VCHAN_ROUNDS,
        before=f"{IDLE}\nxl list{FOREIGN}",
        timeout_s=TIMEOUT_S,
    )
    print(done.dom0, done.guest)
    assert (done.status, done.errors) == (0, "")
    assert "introduced 1" in done.dom0
    assert re.search(r"^beside +1 +256 +1 +-b---- +\d+\.\d$", done.dom0, re.MULTILINE)
    banner = re.search(r"^errors: \{0\} banner: (6\.1\.\S+-cloud-amd64)$", done.dom0, re.MULTILINE)
    assert banner
    assert "absent: [-22, -22]" in done.dom0
    assert f"\n{banner[1].replace('-cloud', '')}\n" in done.dom0  # dom0's own
    got = re.search(rf"^client: got {VCHAN_BYTES} bytes, sum ([0-9a-f]{{16}}),", done.dom0, re.MULTILINE)
    assert got
    assert f"server: sent {VCHAN_BYTES} bytes, sum {got[1]}, theirs {got[1]}" in done.guest
    assert f"client: {VCHAN_ROUNDS} bytes there and back" in done.dom0
    assert re.search(r'^/local/domain/1/data/vchan/ring-ref = "\d+" +\(n1,r0\)$', done.dom0, re.MULTILINE)
