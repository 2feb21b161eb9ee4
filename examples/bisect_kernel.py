#!/usr/bin/env python3
"""Bisect a kernel by booting it: `git bisect run examples/bisect_kernel.py vmlinux 'test -e /sys/hypervisor/uuid'`.

Boots the image as a Xen PVH guest and runs a shell command in it.  Exit status, as `git bisect run` wants it: 0 where the
command succeeds, 1 where it fails or the guest crashes, 125 (skip) where this kernel cannot be started at all.
"""

import sys

import vmm
from vmm.errors import GuestError, PyvmmError

SKIP = 125


def main(image: str, command: str) -> int:
    try:
        guest = vmm.Guest(image, memory="256M", append="quiet panic=-1", trace=False, timeout=300)
    except PyvmmError as error:
        print(f"skipped: {error}", file=sys.stderr)
        return SKIP
    with guest:
        try:
            result = guest.run(command)
        except GuestError as error:
            print(f"bad: {error}\n{guest.console.text[-2000:]}", file=sys.stderr)
            return 1
    print(f"{'bad' if result.status else 'good'}: {result.stdout}{result.stderr}".rstrip())
    return 1 if result.status else 0


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(f"usage: {sys.argv[0]} IMAGE COMMAND")
    raise SystemExit(main(*sys.argv[1:]))
