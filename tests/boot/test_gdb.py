"""Debian's GDB on a stock kernel: stopped in a function, stepped, watched, let run to its power-off."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.commands import pyvmm, started

TIMEOUT_S = 240
FUNCTIONS = ("kernel_init", "__x64_sys_reboot", "jiffies_64")


def addresses(image: Path) -> dict[str, str]:
    """Where a stripped kernel has its functions: it says so itself, and PVH entry knows no KASLR."""
    pattern = "|".join(FUNCTIONS)
    done = pyvmm(
        "run", image, "--exec", f"grep -wE '{pattern}' /proc/kallsyms", "--timeout", TIMEOUT_S, timeout_s=TIMEOUT_S
    )
    found = {line.split()[2]: f"0x{line.split()[0]}" for line in done.stdout.splitlines()}
    assert set(FUNCTIONS) <= set(found), done
    return found


def test_gdb_breaks_in_a_stock_kernels_function_steps_and_continues_to_poweroff(
    kernel: Callable[[str], Path], tmp_path: Path
) -> None:
    image, place = kernel("--vmlinux 6.1"), tmp_path / "gdb"
    at = addresses(image)
    commands = [
        "set confirm off",
        "set architecture i386:x86-64",
        f"target remote {place}",
        f"hbreak *{at['kernel_init']}",  # before there are page tables
        "continue",
        "info threads",
        "delete",
        "stepi",
        "stepi",
        "stepi",
        "p/x $rip",
        f"break *{at['__x64_sys_reboot']}",
        f"watch *(long*){at['jiffies_64']}",
        "continue",
        "p/x $rip",
        "delete 3",
        "continue",
        "p/x $rip",
        "x/s $rsp",
        "delete",
        "continue",
    ]
    words = ["gdb", "-nx", "-batch"]
    for command in commands:
        words += ["-ex", command]
    options = ("-c", 2, "--gdb", f"unix:{place},wait", "--exec", "echo ran", "--timeout", TIMEOUT_S)
    with started("run", image, *options) as process:
        try:
            assert process.stderr is not None
            assert "waits for GDB" in process.stderr.readline()
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            out, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    said = done.stdout + done.stderr
    rips = [int(match[1], 16) for match in re.finditer(r"^\$\d+ = (0x[0-9a-f]+)$", said, re.M)]
    start, reboot = int(at["kernel_init"], 16), int(at["__x64_sys_reboot"], 16)
    assert f"Breakpoint 1, {start:#018x} in" in said, said
    assert re.search(r"Thread 2 \(vCPU 1, o(n|ff)line\)", said)
    assert rips[0] != start, said  # three instructions further
    assert "Hardware watchpoint 3" in said and "Old value" in said, said
    assert rips[-1] == reboot, said
    assert "exited normally" in said, said
    assert (process.returncode, out, errors) == (0, "ran\n", "")
