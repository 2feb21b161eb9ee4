#!/usr/bin/env python3
"""Two guests and a network: `sudo examples/two_guests.py vmlinuz`.

Makes a bridge, boots two guests on it, gives them addresses, and has one ping the other.
"""

import os
import subprocess
import sys
from contextlib import ExitStack

import vmm

BRIDGE = f"example{os.getpid() % 10000}"


def ip(*words: str) -> None:
    subprocess.run(["ip", "link", *words], check=True)


def main(image: str) -> int:
    with ExitStack() as stack:
        ip("add", BRIDGE, "type", "bridge")
        stack.callback(ip, "del", BRIDGE)
        ip("set", BRIDGE, "up")
        guests = []
        for number in (1, 2):
            options = {"memory": "256M", "append": "quiet", "trace": False, "timeout": 300}
            guest = vmm.Guest(image, name=f"guest{number}", nets=[f"bridge:{BRIDGE}"], **options)
            guests.append(stack.enter_context(guest))
        for number, guest in enumerate(guests, 1):
            guest.run(f"ip addr add 10.0.0.{number}/24 dev eth0 && ip link set eth0 up", check=True)
        print(guests[0].run("ping -c 3 10.0.0.2", check=True).stdout)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(f"usage: {sys.argv[0]} IMAGE")
    raise SystemExit(main(sys.argv[1]))
