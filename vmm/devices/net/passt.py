"""User networking through passt: frames on a stream socket, each behind its length.

Source: passt(1); the stream's form is QEMU's for `-netdev stream`.
"""

import shutil
import struct
from collections.abc import Sequence

from vmm.devices.net.offload import PLAIN
from vmm.devices.net.spec import Net
from vmm.devices.net.wire import Gone
from vmm.errors import PyvmmError
from vmm.host.helper import Helper

LENGTH = struct.Struct(">I")
MAX_FRAME_BYTES = 65536
BUFFER_BYTES = 4 << 20


class UserNetwork:
    """A network that passt makes out of the host's own sockets."""

    offloads = False

    def __init__(self, net: Net) -> None:
        """PyvmmError where there is no passt."""
        arguments = ["--mtu", str(net.mtu)]
        for protocol, address, host, guest in net.forwards:
            arguments += [
                "-t" if protocol == "tcp" else "-u",
                f"{address}/{host}:{guest}" if address else f"{host}:{guest}",
            ]
        self._stream = PasstStream(arguments)

    def wires(self, queues: int, offload: int) -> "list[PasstStream]":
        """The one stream."""
        return [self._stream]

    def unplug(self) -> None:
        """What is half received belongs to nobody now."""
        self._stream.skip()

    def close(self) -> None:
        """End passt."""
        self._stream.close()


class PasstStream:
    """The stream and the process behind it.  passt completes no checksums and cuts no segments, nor asks for that."""

    offloads = False

    def __init__(self, arguments: list[str]) -> None:
        """Start passt with further arguments.  PyvmmError."""
        program = shutil.which("passt")
        if program is None:
            raise PyvmmError("--net user needs the program passt, which this host has not; install it (Debian: passt)")
        self._helper = Helper(
            "passt", lambda fd: [program, "--foreground", "--quiet", "--stderr", "--fd", fd, *arguments], BUFFER_BYTES
        )
        self._socket = self._helper.socket
        self._unsent = b""
        self._expected = 0
        self._got = 0
        self._skipping = False
        self._length = b""

    def fileno(self) -> int:
        """What can be read when a packet waits."""
        return self._socket.fileno()

    # ------------------------------------------------------------------------------------- sending

    def send(self, header: bytes, views: Sequence[memoryview]) -> bool:
        """One packet to the network, behind its virtio header; False where it was dropped.  OSError."""
        if header != PLAIN and header[1]:
            return False  # larger than a segment: the guest was told not to
        if not self._send_rest():
            return False
        size = sum(map(len, views))
        try:
            sent = self._socket.sendmsg([LENGTH.pack(size), *views])
        except BlockingIOError:
            return False
        except OSError as error:
            raise self._gone() from error
        if sent < LENGTH.size + size:  # the rest of a frame that has begun must follow
            self._unsent = b"".join([LENGTH.pack(size), *views])[sent:]
        return True

    def _send_rest(self) -> bool:
        if self._unsent:
            try:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise self._gone() from error
        return not self._unsent

    # ----------------------------------------------------------------------------------- receiving

    def receive(self, header: bytearray, views: Sequence[memoryview]) -> int | None:
        """One packet into these views, its header apart: its size, None where none waits.  OSError."""
        header[:] = PLAIN
        if not self._expected and not self._receive_length():
            return None
        while self._got < self._expected:
            room = [] if self._skipping else _between(views, self._got, self._expected)
            part = self._take(room or [bytearray(self._expected - self._got)])
            if part is None:
                return None
            self._got += part
        size, self._expected, self._got = self._expected, 0, 0
        skipped, self._skipping = self._skipping, False
        return 0 if skipped or size > sum(map(len, views)) else size

    def skip(self) -> None:
        """Drop the frame that is half received: the pages that its beginning went to are gone."""
        self._skipping = self._got > 0

    def _receive_length(self) -> bool:
        while len(self._length) < LENGTH.size:
            part = bytearray(LENGTH.size - len(self._length))
            taken = self._take([part])
            if taken is None:
                return False
            self._length += part[:taken]
        (self._expected,) = LENGTH.unpack(self._length)
        self._length = b""
        if not 0 < self._expected <= MAX_FRAME_BYTES:
            raise Gone(f"passt sent a frame of {self._expected} bytes")
        return True

    def _take(self, views: Sequence[memoryview | bytearray]) -> int | None:
        try:
            taken = self._socket.recvmsg_into(views)[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._gone() from error
        if not taken:
            raise self._gone()
        return taken

    def _gone(self) -> Gone:
        return Gone(self._helper.how_it_ended())

    def close(self) -> None:
        """Let the descriptor go."""
        self._helper.close()


def _between(views: Sequence[memoryview], start: int, end: int) -> list[memoryview]:
    """The pieces of views from one position to another."""
    found, at = [], 0
    for view in views:
        first, last = max(start - at, 0), min(end - at, len(view))
        if first < last:
            found.append(view[first:last])
        at += len(view)
    return found
