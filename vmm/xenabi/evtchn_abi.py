"""How pending events are shown to a guest: the 2-level ABI and the FIFO ABI.

Both work on memory that the guest changes meanwhile: every read may lie, and no loop may depend on the guest's good
will.  The caller holds the domain's event-channel lock.  Source: xen/include/public/event_channel.h, and the FIFO design
(xen/docs/designs/event-channels-F.pandoc).
"""

import struct
from typing import Protocol

from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.interfaces import EventTable, SharedBytes, VcpuState
from vmm.xenabi.values import Gpa, Port, VcpuId

DEFAULT_PRIORITY = 7
PRIORITIES = 16
LOWEST_PRIORITY = PRIORITIES - 1


class EventPort(Protocol):
    """What an ABI must know of a port."""

    port: Port
    vcpu: VcpuId
    priority: int
    pending_early: bool
    """FIFO: raised before its word had a place."""


class TwoLevelLayout:
    """Where the 2-level ABI keeps its bits in the shared info page (xen.h, struct shared_info)."""

    def __init__(self, abi: Abi) -> None:
        word = int(abi)
        self.word_bits = 8 * word
        self.ports = self.word_bits * self.word_bits
        self.pending_offset = 32 * 64
        self.mask_offset = self.pending_offset + word * self.word_bits
        self.wall_clock_offset = self.mask_offset + word * self.word_bits
        self.selector_offset = word  # vcpu_info.evtchn_pending_sel


class TwoLevelAbi:
    """A pending and a mask bit for each port in shared info, and a selector in vcpu_info."""

    def __init__(self, shared: SharedBytes, abi: Abi) -> None:
        self._shared = shared
        self._layout = TwoLevelLayout(abi)
        self.ports = self._layout.ports

    def raise_event(self, channel: EventPort, vcpu: VcpuState) -> bool:
        """Mark a port pending; whether its vCPU is to be told."""
        if self._set(self._layout.pending_offset, channel.port) or self._bit(self._layout.mask_offset, channel.port):
            return False
        return self._select(channel, vcpu)

    def unmask(self, channel: EventPort, vcpu: VcpuState) -> bool:
        """Clear a port's mask; whether its vCPU is to be told of what came meanwhile."""
        if not self._clear(self._layout.mask_offset, channel.port):
            return False
        return self._bit(self._layout.pending_offset, channel.port) and self._select(channel, vcpu)

    def clear(self, channel: EventPort) -> None:
        """A closed port is not pending."""
        self._clear(self._layout.pending_offset, channel.port)

    def is_pending(self, port: Port) -> bool:
        """Whether the guest has yet to take an event."""
        return self._bit(self._layout.pending_offset, port)

    def is_busy(self, port: Port) -> bool:
        """Whether a free port may not be used again yet."""
        return False

    def _select(self, channel: EventPort, vcpu: VcpuState) -> bool:
        if vcpu.info is None:
            return False
        shift = 8 * (self._layout.selector_offset % 8)
        bit = 1 << channel.port // self._layout.word_bits
        vcpu.info.fetch_or_64(self._layout.selector_offset // 8 * 8, bit << shift)
        return True

    def _set(self, offset: int, port: int) -> bool:
        before = self._shared.fetch_or_64(offset + port // 64 * 8, 1 << port % 64)
        return bool(before >> port % 64 & 1)

    def _clear(self, offset: int, port: int) -> bool:
        before = self._shared.fetch_and_64(offset + port // 64 * 8, ~(1 << port % 64) & (1 << 64) - 1)
        return bool(before >> port % 64 & 1)

    def _bit(self, offset: int, port: int) -> bool:
        return bool(self._shared.read(offset + port // 8, 1)[0] >> port % 8 & 1)


_PENDING, _MASKED, _LINKED = 1 << 31, 1 << 30, 1 << 29
LINK_BITS = 17
_WORD = struct.Struct("<I")
_WORDS_A_PAGE = PAGE_BYTES // 4
_MAX_PAGES = (1 << LINK_BITS) // _WORDS_A_PAGE
CONTROL_BLOCK_BYTES = 8 + 4 * PRIORITIES


class FifoAbi:
    """A word for each port in an array that the guest gives page by page, linked into a queue a vCPU and priority.

    The C loops of the vCPUs fill the queues, too, so the queues are theirs.
    """

    ports = 1 << LINK_BITS

    def __init__(self, table: EventTable) -> None:
        self._pages: list[SharedBytes] = []
        self._blocks: dict[VcpuId, SharedBytes] = {}
        self._table = table
        table.forget_abi()

    def has_block(self, vcpu: VcpuId) -> bool:
        """Whether a vCPU has its control block."""
        return vcpu in self._blocks

    def add_block(self, vcpu: VcpuId, memory: SharedBytes) -> None:
        """The guest has given a vCPU its control block."""
        self._blocks[vcpu] = memory
        self._table.add_block(vcpu, memory.address)

    def add_page(self, memory: SharedBytes) -> bool:
        """The guest has given the next page of event words; False where it has given them all."""
        if len(self._pages) == _MAX_PAGES:
            return False
        self._table.add_words(len(self._pages), memory.address)
        self._pages.append(memory)
        return True

    def blocks(self) -> tuple[tuple[VcpuId, Gpa], ...]:
        """Where each vCPU's control block is in the guest's memory."""
        return tuple((vcpu, block.gpa) for vcpu, block in sorted(self._blocks.items()))

    def pages(self) -> tuple[Gpa, ...]:
        """Where the pages of event words are, in order."""
        return tuple(page.gpa for page in self._pages)

    def raise_event(self, channel: EventPort, vcpu: VcpuState) -> bool:
        """Mark a port pending and queue it; whether its vCPU is to be told."""
        if not self._has_word(channel.port):
            channel.pending_early = True
            return False
        return self._table.raise_(channel.port, vcpu.id, channel.priority)

    def unmask(self, channel: EventPort, vcpu: VcpuState) -> bool:
        """Clear a port's mask and queue it if it is pending; whether its vCPU is to be told."""
        if not self._has_word(channel.port):
            return False
        self._clear(channel.port, _MASKED)
        return bool(self._word(channel.port) & _PENDING) and self._table.queue(channel.port, vcpu.id, channel.priority)

    def clear(self, channel: EventPort) -> None:
        """A closed port is not pending; if it is queued, the guest takes it out and ignores it."""
        channel.pending_early = False
        if self._has_word(channel.port):
            self._clear(channel.port, _PENDING)

    def is_pending(self, port: Port) -> bool:
        """Whether the guest has yet to take an event."""
        return self._has_word(port) and bool(self._word(port) & _PENDING)

    def is_busy(self, port: Port) -> bool:
        """A closed port that the guest has not taken out of its queue may not be used again yet."""
        return self._has_word(port) and bool(self._word(port) & _LINKED)

    def _has_word(self, port: Port) -> bool:
        return port // _WORDS_A_PAGE < len(self._pages)

    def _place(self, port: Port) -> tuple[SharedBytes, int]:
        return self._pages[port // _WORDS_A_PAGE], port % _WORDS_A_PAGE * 4

    def _word(self, port: Port) -> int:
        page, offset = self._place(port)
        return int(_WORD.unpack(page.read(offset, 4))[0])

    def _clear(self, port: Port, bits: int) -> None:
        page, offset = self._place(port)
        page.fetch_and_64(offset - offset % 8, ~(bits << 8 * (offset % 8)) & (1 << 64) - 1)
