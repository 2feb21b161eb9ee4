"""Fixtures for tests that boot real kernels."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vmm.boot.initramfs import busybox_initramfs
from vmm.host.cpuinfo import cpu_flags

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def hardware() -> None:
    """Real kernels need VT-x or AMD-V; `scripts/test` runs these tests in an L1 that has it."""
    if not {"vmx", "svm"} & cpu_flags():
        pytest.skip("needs VT-x or AMD-V: a KVM that emulates lacks CMPXCHG16B, without which Linux stops early")


@pytest.fixture(scope="session")
def kernel() -> Callable[[str], Path]:
    """A stock Debian kernel by its name for scripts/kernel, or by `--vmlinux NAME`."""

    def find(name: str) -> Path:
        done = subprocess.run([ROOT / "scripts/kernel", *name.split()], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"scripts/kernel {name}: {done.stderr}"
        return Path(done.stdout.strip())

    return find


@pytest.fixture(scope="session")
def rootfs() -> Path:
    """A Debian 12 root file system image, not to be written to."""
    done = subprocess.run([ROOT / "scripts/rootfs"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def dom0_rootfs() -> Path:
    """The same with Debian's Xen tools."""
    done = subprocess.run([ROOT / "scripts/rootfs", "dom0"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def initramfs(tmp_path: Path) -> Callable[[str], Path]:
    """An initramfs that runs a script."""

    def make(script: str) -> Path:
        path = tmp_path / "initramfs"
        path.write_bytes(busybox_initramfs(script))
        return path

    return make
