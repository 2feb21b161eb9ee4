"""The hypervisor's own log, as `xl dmesg` reads it.  Source: xen/include/public/sysctl.h (XEN_SYSCTL_readconsole)."""

import threading

RING_BYTES = 16384


class HypervisorLog:
    """The last bytes that were logged, with an index that goes on for ever.  `_lock` guards it; from any thread."""

    def __init__(self, size_bytes: int = RING_BYTES) -> None:
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._data = b""
        self._end = 0
        self._cleared = 0

    def note(self, *lines: str) -> None:
        """Log lines, marked as Xen marks its own."""
        self.append("".join(f"(XEN) {text}\n" for text in lines).encode(errors="replace"))

    def append(self, text: bytes) -> None:
        """Log bytes as they are."""
        with self._lock:
            self._data = (self._data + text)[-self._size_bytes :]
            self._end += len(text)

    def read(self, count: int, index: int | None, *, clear: bool) -> tuple[bytes, int]:
        """At most so many bytes, from an index on or from the oldest, and the index behind them."""
        with self._lock:
            oldest = self._end - len(self._data)
            start = max(oldest, self._cleared)
            if index is not None:
                ahead = (index - start) & 0xFFFF_FFFF  # the guest's index has 32 bits
                start = start + ahead if start + ahead <= self._end else start
            data = self._data[start - oldest :][:count]
            if clear:
                self._cleared = start + len(data)
            return data, (start + len(data)) & 0xFFFF_FFFF
