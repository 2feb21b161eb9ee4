"""A kind of device is a row: whoever lets a user ask for devices walks the table."""

import subprocess
import sys

# The tables are read once, when they are imported: a process of its own adds the row first.
WITH_A_ROW = """
from vmm.devices.kind import Bus, DeviceKind
from vmm.devices import kinds

class Lamp:
    device = "lamp"

    def __init__(self, text):
        self.text = text

kind = DeviceKind(
    "lamp", "lamp", "vlamp", "COLOUR", lambda text, index: Lamp(text), lambda spec: None, int, str, open={}, modules={}
)
kinds.KINDS["lamp"] = kinds.Row(lambda: kind, "a lamp", "a lamp of a colour", "COLOUR", "red", "0 for the first")

from vmm.cli.arguments import make_parser, parse_domu
from vmm.cli.completion import script
from vmm.config.options import For, Of, collect, from_keywords

typed = vars(make_parser("run").parse_args(["run", "image", "--lamp", "red", "--lamp", "blue"]))
print([lamp.text for lamp in collect(typed, Of.DOMAIN, For.RUN)["devices"]])
beside = parse_domu(["image", "--lamp", "green"])
print([lamp.text for lamp in collect(beside, Of.DOMAIN, For.DOMU)["devices"]])
attach = make_parser().parse_args(["attach-lamp", "guest", "white"])
print(attach.command, attach.guest, attach.spec)
print(make_parser().parse_args(["detach-lamp", "guest", "0"]).device)
print(*("--lamp" in script(shell) for shell in ("bash", "zsh")), "attach-lamp" in script("fish"))
"""


def test_a_new_kind_is_one_row() -> None:
    said = subprocess.run([sys.executable, "-c", WITH_A_ROW], capture_output=True, text=True, timeout=60)
    assert said.stderr == ""
    assert said.stdout.splitlines() == ["['red', 'blue']", "['green']", "attach-lamp guest white", "0", "True True True"]
