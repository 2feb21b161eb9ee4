"""`pyvmm` as a user types it, with guests that run."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.commands import one_sentence, pyvmm
from tests.unit.images import Load, elf, note

Build = Callable[[str], Path]


def test_guest_that_powers_off_gives_0_and_its_output(build: Build, system: object) -> None:
    done = pyvmm("run", "--pvh", build("hello"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "hello from a micro-guest\nPASS\n"


def test_guest_that_crashes_gives_3_with_registers(build: Build, system: object) -> None:
    done = pyvmm("run", build("triple"))
    assert done.returncode == 3
    assert done.stderr.startswith("pyvmm: the guest crashed: triple fault")
    assert "rip=" in done.stderr
    assert "code at rip:" in done.stderr
    assert done.stdout == "about to fault\n"


def test_guest_that_loops_gives_4_after_the_timeout(build: Build, system: object) -> None:
    done = pyvmm("run", build("loop"), "--timeout", 1)
    assert done.returncode == 4
    assert done.stderr == "pyvmm: the guest was stopped after 1 s (--timeout)\n"


def test_console_goes_to_a_file_or_nowhere(build: Build, tmp_path: Path, system: object) -> None:
    done = pyvmm("run", build("hello"), "--console", f"file:{tmp_path}/log")
    assert (done.returncode, done.stdout) == (0, "")
    assert (tmp_path / "log").read_text() == "hello from a micro-guest\nPASS\n"
    assert pyvmm("run", build("hello"), "--console", "none").stdout == ""


def test_shown_xen_version_is_the_users(build: Build, system: object) -> None:
    done = pyvmm("run", build("hello"), "--xen-version", "4.18.1")
    assert "FAIL xen_version 0000000000040012" in done.stdout


def test_initrd_that_does_not_fit_gives_1(build: Build, tmp_path: Path, system: object) -> None:
    large = tmp_path / "initrd"
    with open(large, "wb") as handle:
        handle.truncate(100 << 20)
    one_sentence(pyvmm("run", build("hello"), "--initrd", large, "-m", "64M"), 1, "does not fit")
    one_sentence(pyvmm("run", build("hello"), "--append", "x" * 5000), 1, "at most 4095 fit")


def test_image_outside_the_guests_ram_gives_1(tmp_path: Path, system: object) -> None:
    image = tmp_path / "image"
    image.write_bytes(elf([Load(0xF0000000, b"x"), Load(0x100000, b"x")], note(0x100000)))
    one_sentence(pyvmm("run", image), 1, "not RAM of this guest")


def test_forced_transport_that_the_image_cannot_use_gives_1(build: Build, system: object) -> None:
    one_sentence(pyvmm("run", build("hello"), "--transport", "patch"), 1, "no vmcall and vmmcall")


def test_doctor_tells_every_check_and_the_images_transport(build: Build, system: object) -> None:
    done = pyvmm("doctor", "--json", build("direct"))
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert {"/dev/kvm", "virtualisation", "KVM_CAP_SYNC_REGS", "KVM_XEN", "transport"} <= set(checks)
    assert checks["transport"]["ok"]
    assert done.returncode == (0 if all(check["ok"] or not check["required"] for check in checks.values()) else 5)
    assert "virtualisation" in pyvmm("doctor").stdout


def test_guest_that_reboots_is_started_again_unless_told_otherwise(build: Build, system: object) -> None:
    arguments = ("run", build("shutdown"), "--append", "1")
    again = pyvmm(*arguments, "--timeout", 5)
    assert again.returncode == 4
    assert again.stdout.count("ending\n") > 2
    once = pyvmm(*arguments, "--on-reboot", "exit")
    assert (once.returncode, once.stdout) == (0, "ending\n")


def test_serial_port_carries_the_guests_bytes(build: Build, tmp_path: Path, system: object) -> None:
    done = pyvmm("run", build("serial"), "--serial", f"file:{tmp_path}/serial")
    assert done.returncode == 0
    assert (tmp_path / "serial").read_text() == "hello from COM1\n"


def test_a_dom0_runs_with_a_guest_beside_it_and_its_end_is_theirs(build: Build, system: object, tmp_path: Path) -> None:
    console, guest = tmp_path / "console", tmp_path / "guest"
    guest.write_text(f"{build('loop')}   # which would run for ever\n-m 64M --console file:{console}\n--transport page\n")
    done = pyvmm("run", "--dom0", build("hello"), "-m", "64M", "--with-domu", guest, "--transport", "page", "--timeout", 30)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "hello from a micro-guest\nPASS\n"


def test_a_guest_beside_dom0_whose_image_is_missing_is_one_sentence(build: Build, system: object, tmp_path: Path) -> None:
    (tmp_path / "guest").write_text("/nowhere/vmlinux")
    done = pyvmm("run", "--dom0", build("hello"), "--with-domu", tmp_path / "guest")
    one_sentence(done, 1, "/nowhere/vmlinux")
