"""`--net KIND[,OPTION...]`, taken apart."""

import os
import re
from typing import NamedTuple

from vmm.errors import UsageError

FORM = "tap[:NAME] | bridge:NAME | user [,mac=00:16:3e:..][,mtu=N][,queues=N][,hostfwd=tcp:[ADDRESS]:PORT-:PORT]"
MIN_MTU, MAX_MTU = 68, 65521
_FORWARD = re.compile(r"(tcp|udp):([0-9.]*):(\d{1,5})-:(\d{1,5})")


class Net(NamedTuple):
    """One network card that a user asks for."""

    kind: str
    """`tap`, `bridge` or `user`."""
    name: str
    """Of the tap device, or of the bridge; may be empty."""
    mac: str
    mtu: int = 1500
    queues: int | None = None
    forwards: tuple[tuple[str, str, int, int], ...] = ()
    """Protocol, host address (may be empty), host port, guest port."""

    @property
    def device(self) -> str:
        """Its row in `devices.kinds`."""
        return "net"


def parse_net(text: str) -> Net:
    """From the command line.  UsageError."""
    where, *options = text.split(",")
    kind, _, name = where.partition(":")
    if kind not in ("tap", "bridge", "user") or (kind == "bridge") > bool(name) or (kind == "user" and name):
        raise UsageError(f"--net {text!r}: write --net {FORM}")
    if len(name.encode()) > 15 or "/" in name:
        raise UsageError(f"--net {text}: an interface's name has up to 15 characters")
    net = Net(kind, name, random_mac())
    for option in options:
        word, _, value = option.partition("=")
        if word == "mac" and re.fullmatch(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}", value):
            if int(value[:2], 16) & 1:
                raise UsageError(f"--net {text}: {value} is an address for many, not for one card")
            net = net._replace(mac=value.lower())
        elif word == "mtu" and value.isdecimal() and MIN_MTU <= int(value) <= MAX_MTU:
            net = net._replace(mtu=int(value))
        elif word == "queues" and re.fullmatch("[1-8]", value) and kind != "user":
            net = net._replace(queues=int(value))
        elif word == "hostfwd" and kind == "user" and (found := _FORWARD.fullmatch(value)):
            ports = int(found[3]), int(found[4])
            if not all(0 < port < 65536 for port in ports):
                raise UsageError(f"--net {text}: a port is 1 to 65535")
            net = net._replace(forwards=(*net.forwards, (found[1], found[2], *ports)))
        else:
            raise UsageError(f"--net {text}: {option!r} is not an option; write --net {FORM}")
    return net


def random_mac() -> str:
    """An address out of Xen's own range."""
    return "00:16:3e:" + ":".join(f"{byte:02x}" for byte in bytes([os.urandom(1)[0] & 0x7F]) + os.urandom(2))
