"""What a guest gets beside what was asked for."""

import pytest

from vmm.toolstack.prepare import linux_command_line


@pytest.mark.parametrize(
    ("append", "command", "given"),
    [
        ("", None, "console=hvc0"),
        ("ro root=/dev/xvda", None, "console=hvc0 ro root=/dev/xvda"),
        ("console=ttyS0 ro", None, "console=ttyS0 ro"),
        ("", "true", "console=hvc0 quiet loglevel=1"),
        ("earlyprintk=xen", "true", "console=hvc0 earlyprintk=xen"),
    ],
)
def test_linux_gets_the_xen_console_unless_another_is_named(append: str, command: str | None, given: str) -> None:
    assert linux_command_line(append, command) == given
