"""What packets go to and come from, as the queues of a network card see it."""

from collections.abc import Sequence
from typing import Protocol


class Gone(Exception):
    """The other side has ended; the text says what."""


class Wire(Protocol):
    """One queue's way to the network.  Non-blocking; owned by the queue's thread."""

    offloads: bool
    """Whether it takes and gives packets with blank checksums, or larger than a segment."""

    def fileno(self) -> int:
        """To be watched: it can be read when a packet waits."""
        ...

    def send(self, header: bytes, views: Sequence[memoryview]) -> bool:
        """Pass a packet on, in pieces, with its offload header; False where it had to be dropped.  Gone."""
        ...

    def receive(self, header: bytearray, views: Sequence[memoryview]) -> int | None:
        """Put the next packet into the views, and how it is to be completed into `header`: its size, bytes.

        None where there is none yet, 0 where it had to be dropped.  Gone.
        """
        ...

    def close(self) -> None:
        """Let the descriptor go."""
        ...
