"""Tap devices of the host.  Source: Documentation/networking/tuntap.rst, <linux/if_tun.h>."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Sequence

from vmm.devices.net.offload import HEADER
from vmm.devices.net.spec import Net
from vmm.devices.net.wire import Gone
from vmm.errors import PyvmmError

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCSIFMTU, SIOCBRADDIF = 0x8913, 0x8914, 0x8922, 0x89A2
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR, IFF_UP = 0x0002, 0x0100, 0x1000, 0x4000, 0x0001
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6 = 1, 2, 4
_REQUEST = struct.Struct("16sH22x")
_NUMBER = struct.Struct("16si20x")


class TapQueue:
    """One open queue of a tap device; packets carry an offload header."""

    offloads = True

    def __init__(self, name: str, *, several: bool) -> None:
        """Make the device, or join it; OSError.  `several`: more than this one queue."""
        self._fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if several else 0)
        try:
            made = fcntl.ioctl(self._fd, TUNSETIFF, _REQUEST.pack(name.encode(), flags))
        except OSError:
            self.close()
            raise
        self.name = _REQUEST.unpack(made)[0].rstrip(b"\0").decode()

    def fileno(self) -> int:
        """What can be read when a packet waits."""
        return self._fd

    def offload(self, flags: int) -> None:
        """TUN_F_*: what the guest completes in packets that it receives."""
        fcntl.ioctl(self._fd, TUNSETOFFLOAD, flags)

    def send(self, header: bytes, views: Sequence[memoryview]) -> bool:
        """One packet to the network, behind its virtio header; False where it was dropped.  OSError."""
        try:
            os.writev(self._fd, [header, *views])
        except OSError as error:
            if error.errno in (errno.EBADFD, errno.ENODEV):
                raise Gone(f"the tap device {self.name} is gone") from None
            return False  # a malformed packet, or no room
        return True

    def receive(self, header: bytearray, views: Sequence[memoryview]) -> int | None:
        """One packet into these views, its header apart: its size, None where none waits.  OSError."""
        try:
            return os.readv(self._fd, [header, *views]) - HEADER.size
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno in (errno.EBADFD, errno.ENODEV):
                raise Gone(f"the tap device {self.name} is gone") from None
            return None  # it has been taken down

    def close(self) -> None:
        """Let the descriptor go."""
        os.close(self._fd)


class TapDevice:
    """A tap device that is up, on a bridge where one is named.

    It goes with the last of its queues, unless somebody made it to stay.
    """

    offloads = True

    def __init__(self, net: Net, *, several: bool) -> None:
        """Make it, or join the one of that name.  PyvmmError.  `several`: it may have more than one queue."""
        self._several = several
        bridge = net.name if net.kind == "bridge" else None
        name = net.name if net.kind == "tap" else ""
        self._more: list[TapQueue] = []
        try:
            self._first = TapQueue(name or "tap%d", several=several)
        except OSError as error:
            raise PyvmmError(f"--net {net.kind}: {_reason(error, name, bridge)}") from None
        try:
            _bring_up(self._first.name, bridge, net.mtu)
        except OSError as error:
            self._first.close()
            raise PyvmmError(f"--net {net.kind}: {_reason(error, name, bridge)}") from None

    def wires(self, queues: int, offload: int) -> list[TapQueue]:
        """One queue each; what is not connected has none, since the host would hand packets to it, too."""
        while len(self._more) < queues - 1:
            self._more.append(TapQueue(self._first.name, several=self._several))
        wires = [self._first, *self._more]
        for wire in wires:
            wire.offload(offload)
        return wires

    def unplug(self) -> None:
        """Let all queues but the first go."""
        while self._more:
            self._more.pop().close()

    def close(self) -> None:
        """Let the device go."""
        self.unplug()
        self._first.close()


def _bring_up(device: str, bridge: str | None, mtu: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFMTU, _NUMBER.pack(device.encode(), mtu))
        if bridge is not None:
            fcntl.ioctl(control, SIOCBRADDIF, _NUMBER.pack(bridge.encode(), socket.if_nametoindex(device)))
        flags = _REQUEST.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, _REQUEST.pack(device.encode(), 0)))[1]
        fcntl.ioctl(control, SIOCSIFFLAGS, _REQUEST.pack(device.encode(), flags | IFF_UP))


def _reason(error: OSError, name: str, bridge: str | None) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "making a tap device needs root (CAP_NET_ADMIN); `--net user` does not"
    if error.errno == errno.ENOENT:
        return "this host has no /dev/net/tun; load the module tun"
    if error.errno == errno.EBUSY:
        return f"the tap device {name} is in use, or was made with another number of queues"
    if error.errno == errno.ENODEV and bridge is not None:
        return f"there is no bridge {bridge}"
    return error.strerror or str(error)
