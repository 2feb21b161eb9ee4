"""The program that reports a command's exit status."""

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from vmm.boot.exit_program import LISTING_32, LISTING_64, exit_program, machine_code


@pytest.mark.parametrize(("bits", "listing"), [(64, LISTING_64), (32, LISTING_32)])
def test_machine_code_is_what_the_assembler_makes_of_the_listing(tmp_path: Path, bits: int, listing: str) -> None:
    (tmp_path / "program.s").write_text(listing.replace("${port}", "$0x501"))
    subprocess.run(["gcc", f"-m{bits}", "-c", "-o", tmp_path / "program.o", tmp_path / "program.s"], check=True)
    with (tmp_path / "program.o").open("rb") as handle:
        text = ELFFile(handle).get_section_by_name(".text").data()
    assert machine_code(0x501, bits).hex() == text.hex()


@pytest.mark.parametrize("bits", [64, 32])
def test_program_is_a_valid_executable_that_may_not_touch_ports_here(tmp_path: Path, bits: int) -> None:
    program = tmp_path / "program"
    program.write_bytes(exit_program(0x501, bits))
    program.chmod(0o755)
    done = subprocess.run(["setpriv", "--bounding-set=-sys_rawio", program, "7"], check=False)
    assert done.returncode == -11  # iopl is refused, so the CPU faults
