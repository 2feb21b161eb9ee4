"""The plain bytes of a compressed kernel."""

from vmm.kvm import HostMemory

SEARCH_BYTES = 1 << 20


class Unpacked:
    """A payload's plain bytes, read as one reads `bytes`, in memory whose pages a guest can take over."""

    def __init__(self, room_bytes: int, limit_bytes: int) -> None:
        self.memory = HostMemory(room_bytes, huge_pages=True)
        self._size = 0
        self._limit = limit_bytes

    def append(self, piece: bytes) -> None:
        """Put together as they come: a list of the pieces would touch twice the memory.  ValueError beyond the limit."""
        self._make_room(len(piece))
        self.memory.write(self._size, piece)
        self.count(len(piece))

    def room(self, size_bytes: int) -> memoryview:
        """Where the next bytes go, for whoever can put up to so many there itself, and then has them counted."""
        self._make_room(size_bytes)
        return self.memory.view[self._size : self._size + size_bytes]

    def count(self, size_bytes: int) -> None:
        """So many bytes are there now.  ValueError beyond the limit."""
        if self._size + size_bytes > self._limit:
            raise ValueError(f"it grows beyond {self._limit >> 20} MiB")
        self._size += size_bytes

    def _make_room(self, size_bytes: int) -> None:
        end = self._size + size_bytes
        if end > self.memory.size_bytes:
            smaller, self.memory = self.memory, HostMemory(max(2 * self.memory.size_bytes, end), huge_pages=True)
            self.memory.take(0, smaller, 0, self._size)
            smaller.close()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, step = part.indices(self._size)
        return bytes(self.memory.view[start:stop:step])

    def find(self, wanted: bytes, start: int = 0, end: int | None = None) -> int:
        """Where it first occurs, whole, between two places; -1 where it does not."""
        end = self._size if end is None else min(end, self._size)
        for first in range(start, end, SEARCH_BYTES):
            piece = bytes(self.memory.view[first : min(first + SEARCH_BYTES + len(wanted) - 1, end)])
            at = piece.find(wanted)
            if at >= 0:
                return first + at
        return -1

    def close(self) -> None:
        """Let the memory go."""
        self.memory.close()
        self._size = 0
