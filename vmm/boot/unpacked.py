"""The plain bytes of a compressed kernel."""

from vmm.kvm import HostMemory

SEARCH_BYTES = 1 << 20


class Unpacked:
    """A payload's plain bytes, read as one reads `bytes`, in memory whose pages a guest can take over."""

    def __init__(self, room_bytes: int) -> None:
        self.memory = HostMemory(room_bytes, huge_pages=True)
        self._size = 0

    def append(self, piece: bytes) -> None:
        """Put together as they come: a list of the pieces would touch twice the memory."""
        end = self._size + len(piece)
        if end > self.memory.size_bytes:
            smaller, self.memory = self.memory, HostMemory(max(2 * self.memory.size_bytes, end), huge_pages=True)
            self.memory.take(0, smaller, 0, self._size)
            smaller.close()
        self.memory.view[self._size : end] = piece
        self._size = end

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
        self.memory.close()
        self._size = 0
