"""The program that reports a command's exit status."""

import subprocess
from pathlib import Path

from elftools.elf.elffile import ELFFile

from vmm.boot.exit_program import LISTING, exit_program, machine_code


def test_machine_code_is_what_the_assembler_makes_of_the_listing(tmp_path: Path) -> None:
    (tmp_path / "program.s").write_text(LISTING.replace("${port}", "$0x501"))
    subprocess.run(["gcc", "-c", "-o", tmp_path / "program.o", tmp_path / "program.s"], check=True)
    with (tmp_path / "program.o").open("rb") as handle:
        text = ELFFile(handle).get_section_by_name(".text").data()
    assert machine_code(0x501).hex() == text.hex()


def test_program_is_a_valid_executable_that_may_not_touch_ports_here(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(exit_program(0x501))
    program.chmod(0o755)
    done = subprocess.run(["setpriv", "--bounding-set=-sys_rawio", program, "7"], check=False)
    assert done.returncode == -11  # iopl is refused, so the CPU faults
