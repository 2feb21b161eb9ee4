#!/usr/bin/env python3
"""Fuzz a front end: `sudo examples/fuzz_frontend.py vmlinuz [ROUNDS [SEED]]`.

The guest's block driver meets a back end that jumps between xenbus states, and hypercalls that fail now and then.  What is
looked for is a kernel that complains of itself.  The same seed does the same again.
"""

import random
import re
import sys
import tempfile
import time
from errno import ENOSPC
from pathlib import Path

import vmm
from vmm.observe.faults import Fail

STATES = "1234565"
COMPLAINT = re.compile(r"BUG:|WARNING:|Oops|general protection|unable to handle|hung_task|KASAN")
PAUSE_S = 0.2


def main(image: str, rounds: int = 20, seed: int = 1) -> int:
    choose = random.Random(seed)
    faults = [Fail("event_channel_op.alloc_unbound", errno=ENOSPC, probability=0.2)]
    with tempfile.TemporaryDirectory() as folder:
        disk = Path(folder) / "disk.img"
        disk.write_bytes(bytes(8 << 20))
        options = {"memory": "256M", "append": "ignore_loglevel", "faults": faults, "seed": seed, "timeout": 300}
        with vmm.Guest(image, disks=[str(disk)], **options) as guest:
            guest.run("true")
            backend = guest.xenstore.read("device/vbd/51712/backend")
            for number in range(rounds):
                state = choose.choice(STATES)
                guest.xenstore.write(f"{backend}/state", state)
                guest.run("dd if=/dev/xvda of=/dev/null bs=4k count=1 2>/dev/null &", check=True)
                time.sleep(PAUSE_S)
                if complaint := COMPLAINT.search(guest.console.text):
                    line = guest.console.text[complaint.start() :].splitlines()[0]
                    print(f"round {number}, seed {seed}: the kernel says: {line}")
                    return 1
            print(f"{rounds} rounds, {len(guest.injected)} hypercalls failed on purpose, no complaint")
    return 0


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 4:
        raise SystemExit(f"usage: {sys.argv[0]} IMAGE [ROUNDS [SEED]]")
    raise SystemExit(main(sys.argv[1], *map(int, sys.argv[2:])))
