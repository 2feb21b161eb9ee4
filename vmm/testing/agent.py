"""The host's side of a guest's agent: one request at a time over its channel (`vmm.boot.agent` is the guest's side)."""

import base64
import threading
import time
from collections.abc import Callable

from vmm.devices.console.channel import ChannelBackend
from vmm.errors import GuestError

CHECK_S = 0.2
PIECE_BYTES = 32 << 10


class Agent:
    """Requests from one thread at a time.  `_more` guards what has come and not been read."""

    def __init__(self, ended: Callable[[], str | None]) -> None:
        """`ended` says how the guest ended, once it has."""
        self.channel = ChannelBackend("org.pyvmm.agent", 1, self)
        self._ended = ended
        self._more = threading.Condition()
        self._received = bytearray()
        self._ready = False

    def write(self, data: bytes) -> None:
        """The channel's sink."""
        with self._more:
            self._received += data
            self._more.notify_all()

    def run(self, command: str, timeout_s: float) -> tuple[int, bytes, bytes]:
        """A shell command's exit status, output and errors.  GuestError."""
        return self._ask(f"run {_base64(command)}", b"", timeout_s, f"run {command!r}")

    def push(self, path: str, data: bytes, mode: int, timeout_s: float) -> None:
        """Make a file in the guest.  GuestError."""
        status, _, _ = self._ask(f"push {_base64(path)} {len(data)} {mode:o}", data, timeout_s, f"write {path}")
        if status:
            raise GuestError(f"the guest could not write {path}")

    def pull(self, path: str, timeout_s: float) -> bytes:
        """A file of the guest's.  GuestError."""
        status, data, _ = self._ask(f"pull {_base64(path)}", b"", timeout_s, f"read {path}")
        if status:
            raise GuestError(f"the guest could not read {path}")
        return data

    def _ask(self, line: str, payload: bytes, timeout_s: float, what: str) -> tuple[int, bytes, bytes]:
        deadline = time.monotonic() + timeout_s
        if not self._ready:
            if self._line(deadline, "start its agent") != "ready":
                raise GuestError("the guest's agent said something that is no greeting")
            self._ready = True
        with self._more:
            self._received.clear()
        self._send(line.encode() + b"\n", deadline, what)
        for start in range(0, len(payload), PIECE_BYTES):
            self._send(payload[start : start + PIECE_BYTES], deadline, what)
        words = self._line(deadline, what).split()
        if len(words) != 3 or not all(word.isdecimal() for word in words):
            raise GuestError(f"the guest's agent answered {' '.join(words)!r} when asked to {what}")
        status, out_bytes, err_bytes = map(int, words)
        return status, self._take(out_bytes, deadline, what), self._take(err_bytes, deadline, what)

    def _send(self, data: bytes, deadline: float, what: str) -> None:
        taken = threading.Event()
        if not self.channel.write(data, taken.set):
            raise GuestError(f"cannot {what}: the guest's channel is closed{self._why()}")
        while not taken.wait(CHECK_S):
            self._check(deadline, what)

    def _line(self, deadline: float, what: str) -> str:
        with self._more:
            while b"\n" not in self._received:
                self._more.wait(CHECK_S)
                self._check(deadline, what)
            line, _, rest = bytes(self._received).partition(b"\n")
            self._received[:] = rest
            return line.decode("ascii", "replace").strip()

    def _take(self, size: int, deadline: float, what: str) -> bytes:
        with self._more:
            while len(self._received) < size:
                self._more.wait(CHECK_S)
                self._check(deadline, what)
            data = bytes(self._received[:size])
            del self._received[:size]
            return data

    def _check(self, deadline: float, what: str) -> None:
        if why := self._why():
            raise GuestError(f"the guest ended before it could {what}{why}")
        if time.monotonic() > deadline:
            raise GuestError(f"the guest did not {what} in time")

    def _why(self) -> str:
        how = self._ended()
        return f": {how}" if how is not None else ""


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
