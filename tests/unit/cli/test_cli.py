"""`pyvmm` refuses bad input with one sentence and its status, before it needs a KVM."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.commands import one_sentence, pyvmm
from tests.unit.images import Load, bzimage, elf, good, note


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"\x7fELF", "broken ELF"),
        (b"not an image at all", "neither an ELF file nor a bzImage"),
        (elf([Load(0x100000, b"x")]), "no XEN_ELFNOTE_PHYS32_ENTRY"),
        (elf([Load(0x100000, b"x")], note(0x100000), machine=40), "not for x86"),
        (good()[:-30], "truncated"),
        (bzimage(b"\x28\xb5\x2f\xfd junk"), "cannot be unpacked"),
    ],
)
def test_bad_image_gives_1_and_one_sentence(content: bytes, reason: str, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    one_sentence(pyvmm("run", image), 1, reason)


def test_missing_image_gives_1_and_one_sentence(tmp_path: Path) -> None:
    one_sentence(pyvmm("run", tmp_path / "missing"), 1, "No such file")


def test_missing_initrd_gives_1_and_one_sentence(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(good())
    one_sentence(pyvmm("run", image, "--initrd", tmp_path / "missing"), 1, "No such file")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["run", "--exec", "true", "--initrd", "x"], "not allowed with"),
        (["run", "image", "--on-reboot", "dance"], "invalid choice"),
        (["run", "image", "--serial", "stdio"], "cannot both be stdio"),
        (["run", "image", "-m", "0"], "size"),
        (["run", "image", "-m", "-1"], "size"),
        (["run", "image", "-m", "1M"], "too little"),
        (["run", "image", "-m", "4096T"], "more than this host has"),
        (["run", "image", "-c", "0"], "1 to 128"),
        (["run", "image", "-c", "100000"], "1 to 128"),
        (["run", "image", "-c", "two"], "invalid int"),
        (["run", "image", "--transport", "pigeon"], "invalid choice"),
        (["run", "image", "--timeout", "-3"], "--timeout"),
        (["run", "image", "--xen-version", "newest"], "Xen version"),
        (["fly"], "invalid choice"),
    ],
)
def test_bad_usage_gives_2_and_one_sentence(arguments: list[str], reason: str) -> None:
    one_sentence(pyvmm(*arguments), 2, reason)


def with_kvm_at(path: Path, before: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """pyvmm on a host whose /dev/kvm is another file."""
    script = (
        "import os, sys, vmm.cli.run, vmm.machine.hypervisor, vmm.kvm.system as s; opened = s.System.__init__;"
        f"s.System.__init__ = lambda self, path={str(path)!r}: opened(self, path);"
        f"{before}from vmm.cli.main import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_host_without_kvm_gives_5(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(good())
    one_sentence(with_kvm_at(tmp_path / "none", "", "run", image), 5, "cannot open /dev/kvm: No such file")


def test_kvm_that_may_not_be_opened_gives_5(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can become somebody who may not open a file")
    with tempfile.TemporaryDirectory() as folder:
        image, locked = Path(folder) / "image", Path(folder) / "kvm"
        image.write_bytes(good())
        locked.touch(0)
        Path(folder).chmod(0o755)
        done = with_kvm_at(locked, "os.setuid(65534);", "run", image)
    one_sentence(done, 5, "run as root, or join the group")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--with-domu", "FILE"], "add --dom0"),
        (["--dom0", "--with-domu", "/nowhere/at/all"], "No such file or directory"),
        (["--dom0", "--share", "/tmp"], "a dom0 has PCI devices only"),
        (["--dom0", "--root", "host"], "a dom0 has PCI devices only"),
    ],
)
def test_what_a_dom0_cannot_have_is_refused(options: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(good())
    (tmp_path / "FILE").write_text("image")
    words = [str(tmp_path / "FILE") if word == "FILE" else word for word in options]
    one_sentence(pyvmm("run", tmp_path / "image", *words), 2, reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("image --dom0", "--dom0 is not for a guest beside a dom0"),
        ("image --console stdio", "standard input and output are the dom0's"),
        ("image --vcpus many", "--vcpus"),
        ("image 'unclosed", "No closing quotation"),
        ("image -m 1K", "--memory 1K is too little"),
    ],
)
def test_a_guest_beside_dom0_that_cannot_be_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(good())
    (tmp_path / "guest").write_text(f"# a comment\n{text}\n")
    one_sentence(pyvmm("run", tmp_path / "image", "--dom0", "--with-domu", tmp_path / "guest"), 2, reason)
