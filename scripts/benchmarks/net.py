"""One TCP stream over a tap device, pyvmm's card against xen-net-device of QEMU's Xen emulation.

Needs VT-x or AMD-V, KVM_XEN and root: `ci/nested --kernel 6.12 -- scripts/bench --runs 5 net`.
"""

import subprocess
import tempfile
from pathlib import Path

from scripts.benchmarks.devices import Promise, compare, compiled, initramfs
from scripts.benchmarks.monitors import pyvmm, qemu_xen
from scripts.benchmarks.table import Row

SECONDS, PORT = 4, 5201
DIRECTIONS = {"guest-to-host": "send", "host-to-guest": "receive"}


def measure(runs: int) -> list[Row]:
    """Interleaved guests, each with both directions."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        here = Path(folder)
        program = compiled("tcpstream", here)
        subprocess.run(["ip", "tuntap", "add", "dev", "bench", "mode", "tap"], check=True)
        server = subprocess.Popen([program, "serve", str(PORT)])
        try:
            subprocess.run(["ip", "addr", "add", "10.99.0.1/24", "dev", "bench"], check=True)
            subprocess.run(["ip", "link", "set", "bench", "up"], check=True)
            script = "while [ ! -e /sys/class/net/eth0 ]; do sleep 0.1; done\n"
            script += "ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up; sleep 1\n"
            for name, verb in DIRECTIONS.items():
                script += f"echo RESULT {name} $(tcpstream {verb} 10.99.0.1 {PORT} {SECONDS})\n"
            initrd = initramfs(program, "xen_netfront", script, here)
            card = "tap,id=n,ifname=bench,script=no,downscript=no,vhost=off"
            rivals = [
                pyvmm(initrd, "--net", "tap:bench"),
                qemu_xen(initrd, "-netdev", card, "-device", "xen-net-device,netdev=n"),
            ]
            return compare(runs, rivals, [Promise(name, "MiB/s", 1.0) for name in DIRECTIONS])
        finally:
            server.kill()
            subprocess.run(["ip", "link", "del", "bench"], check=False)
