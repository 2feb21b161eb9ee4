"""Debian's 32-bit kernels, which have PAE: they boot, run a command, use their devices, and GDB attaches to them."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import pyvmm, started
from vmm.host.cpuinfo import lack_for_pae
from vmm.kvm import System, XenFlag
from vmm.xenabi.transport import Transport

TIMEOUT_S = 240
ASK = "uname -m; cat /sys/hypervisor/type"

pytestmark = pytest.mark.skipif(bool(lack_for_pae()), reason=f"no guest with PAE runs here: {lack_for_pae()}")


def run(image: Path, command: str, *options: object) -> str:
    done = pyvmm("run", image, "--exec", command, "--timeout", TIMEOUT_S, *options, timeout_s=TIMEOUT_S + 60)
    assert done.returncode == 0, (done.returncode, done.stderr, done.stdout)
    return done.stdout


@pytest.mark.parametrize("transport", list(Transport))
@pytest.mark.parametrize("version", ["5.10", "6.1"])
def test_a_32_bit_kernel_boots_and_runs_a_command(
    kernel: Callable[[str], Path], system: System, version: str, transport: Transport
) -> None:
    if (version, transport) == ("5.10", Transport.PATCH):
        pytest.skip("Linux before late 2024 uses the hypercall page: it has no vmcall to patch")
    if (version, transport) == ("6.1", Transport.PAGE):
        pytest.skip("Linux since late 2024 executes vmcall itself: it asks for no hypercall page")
    if transport is Transport.KVM_XEN and XenFlag.INTERCEPT_HCALL not in system.xen_flags():
        pytest.skip("this host's KVM has no KVM_XEN")
    assert run(kernel(f"{version}-686-pae"), ASK, "--transport", transport).split() == ["i686", "xen"]


def test_its_disk_and_its_card_carry_data(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    found = run(
        kernel("6.1-686-pae"),
        "head -c 13 /dev/xvda; printf 'from the guest' | dd of=/dev/xvda bs=512 seek=1 conv=fsync 2>/dev/null; "
        "cat /sys/class/net/eth0/address",
        "--disk", disk, "--net", "tap,mac=02:00:00:00:00:32",
    )  # fmt: skip
    assert "from the host" in found
    assert "02:00:00:00:00:32" in found
    assert disk.read_bytes()[512:526] == b"from the guest"


def test_two_vcpus_come_up(kernel: Callable[[str], Path]) -> None:
    assert run(kernel("6.1-686-pae"), "nproc", "-c", 2).split() == ["2"]


def test_gdb_breaks_steps_and_walks_the_stack(kernel: Callable[[str], Path], tmp_path: Path) -> None:
    image, place = kernel("--vmlinux 6.1-686-pae"), tmp_path / "gdb"
    symbols = run(image, "grep -w kernel_init /proc/kallsyms")
    address = f"0x{symbols.split()[0]}"
    commands = [
        "set confirm off",
        "set architecture i386",
        f"target remote {place}",
        f"hbreak *{address}",
        "continue",
        "p/x $eip",
        "stepi",
        "stepi",
        "info registers eip",
        "backtrace 1",
        "delete",
        "continue",
    ]
    words = ["gdb", "-nx", "-batch", *(word for command in commands for word in ("-ex", command))]
    options = ("--gdb", f"unix:{place},wait", "--exec", "echo ran", "--timeout", TIMEOUT_S)
    with started("run", image, *options) as process:
        try:
            assert process.stderr is not None
            assert "waits for GDB" in process.stderr.readline()
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            assert process.wait(TIMEOUT_S) == 0, done
        finally:
            process.kill()
    assert re.search(rf"^\$1 = {address}$", done.stdout, re.MULTILINE), done
    assert re.search(r"^#0  0x[0-9a-f]{8} in ", done.stdout, re.MULTILINE), done
    assert "Program terminated" in done.stdout or "exited" in done.stdout, done
