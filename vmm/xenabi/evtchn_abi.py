"""How pending events are shown to a guest: the 2-level ABI and the FIFO ABI.

Both work on memory that the guest changes meanwhile: every read may lie, and no loop may depend on the guest's good
will.  The caller holds the domain's event-channel lock.  Source: xen/include/public/event_channel.h, and the FIFO design
(xen/docs/designs/event-channels-F.pandoc).
"""

import struct
from typing import NamedTuple, Protocol

from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.interfaces import Port, SharedBytes, Vcpu, VcpuId

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

    def raise_event(self, channel: EventPort, vcpu: Vcpu) -> bool:
        """Mark a port pending; whether its vCPU is to be told."""
        if self._set(self._layout.pending_offset, channel.port) or self._bit(self._layout.mask_offset, channel.port):
            return False
        return self._select(channel, vcpu)

    def unmask(self, channel: EventPort, vcpu: Vcpu) -> bool:
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

    def _select(self, channel: EventPort, vcpu: Vcpu) -> bool:
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


_PENDING, _MASKED, _LINKED, _BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK_BITS = 17
_LINK = (1 << LINK_BITS) - 1
_WORD = struct.Struct("<I")
_WORDS_A_PAGE = PAGE_BYTES // 4
_MAX_PAGES = (1 << LINK_BITS) // _WORDS_A_PAGE
_LINK_TRIES = 64
CONTROL_BLOCK_BYTES = 8 + 4 * PRIORITIES
_HEADS_OFFSET = 8


class _ControlBlock:
    """One vCPU's: the ready bits, the heads of its queues, and (ours alone) their tails."""

    def __init__(self, memory: SharedBytes) -> None:
        self.memory = memory
        self.tails = [Port(0)] * PRIORITIES

    def set_head(self, priority: int, port: Port) -> None:
        self.memory.write(_HEADS_OFFSET + 4 * priority, _WORD.pack(port))

    def set_ready(self, priority: int) -> None:
        self.memory.fetch_or_64(0, 1 << priority)


class OwnQueue(NamedTuple):
    """A FIFO queue that holds events of one port alone: so whoever raises them need not know what is in it.

    The port; the page and offset of its event word; the control block with the ready word at 0, and where the queue's head
    is in it; the ready word's bit.
    """

    port: Port
    page: SharedBytes
    word_offset: int
    block: SharedBytes
    head_offset: int
    ready_bit: int


class FifoAbi:
    """A word for each port in an array that the guest gives page by page, linked into a queue a vCPU and priority."""

    ports = 1 << LINK_BITS

    def __init__(self) -> None:
        self._pages: list[SharedBytes] = []
        self._blocks: dict[VcpuId, _ControlBlock] = {}
        self._queue_of: dict[Port, tuple[VcpuId, int]] = {}

    def own_queue(self, channel: EventPort) -> OwnQueue | None:
        """The queue of a port that has a priority which no other port on its vCPU has; None where it has no place yet."""
        block = self._blocks.get(channel.vcpu)
        if block is None or not self._has_word(channel.port):
            return None
        head = _HEADS_OFFSET + 4 * channel.priority
        return OwnQueue(channel.port, *self._place(channel.port), block.memory, head, 1 << channel.priority)

    def has_block(self, vcpu: VcpuId) -> bool:
        """Whether a vCPU has its control block."""
        return vcpu in self._blocks

    def add_block(self, vcpu: VcpuId, memory: SharedBytes) -> None:
        """The guest has given a vCPU its control block."""
        self._blocks[vcpu] = _ControlBlock(memory)

    def add_page(self, memory: SharedBytes) -> bool:
        """The guest has given the next page of event words; False where it has given them all."""
        if len(self._pages) == _MAX_PAGES:
            return False
        self._pages.append(memory)
        return True

    def raise_event(self, channel: EventPort, vcpu: Vcpu) -> bool:
        """Mark a port pending and queue it; whether its vCPU is to be told."""
        if not self._has_word(channel.port):
            channel.pending_early = True
            return False
        self._set(channel.port, _PENDING)
        return self._queue(channel, vcpu)

    def unmask(self, channel: EventPort, vcpu: Vcpu) -> bool:
        """Clear a port's mask and queue it if it is pending; whether its vCPU is to be told."""
        if not self._has_word(channel.port):
            return False
        self._clear(channel.port, _MASKED)
        return bool(self._word(channel.port) & _PENDING) and self._queue(channel, vcpu)

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

    def _queue(self, channel: EventPort, vcpu: Vcpu) -> bool:
        block = self._blocks.get(vcpu.id)
        if block is None or self._word(channel.port) & _MASKED or self._set(channel.port, _LINKED):
            return False
        self._clear(channel.port, _LINK)  # it becomes the last of its queue
        self._leave_queue(channel.port)
        priority = channel.priority
        tail = block.tails[priority]
        if not tail or not self._link(tail, channel.port):
            block.set_head(priority, channel.port)  # the queue was empty
        block.tails[priority] = channel.port
        self._queue_of[channel.port] = vcpu.id, priority
        block.set_ready(priority)
        return True

    def _leave_queue(self, port: Port) -> None:
        # A port that was the tail of another queue must not have events linked behind it there any more.
        queue = self._queue_of.pop(port, None)
        if queue is not None:
            vcpu, priority = queue
            block = self._blocks[vcpu]
            if block.tails[priority] == port:
                block.tails[priority] = Port(0)

    def _link(self, tail: Port, port: Port) -> bool:
        """Let the word of `tail` point to `port`, if the guest has not taken it out of the queue."""
        page, offset = self._place(tail)
        for _ in range(_LINK_TRIES):
            word = self._word(tail)
            if not word & _LINKED:
                return False
            if page.exchange_32(offset, word, word & ~(_LINK | _BUSY) | port) == word:
                return True
        return False  # a guest that changes the word all the time loses its events

    def _has_word(self, port: Port) -> bool:
        return port // _WORDS_A_PAGE < len(self._pages)

    def _place(self, port: Port) -> tuple[SharedBytes, int]:
        return self._pages[port // _WORDS_A_PAGE], port % _WORDS_A_PAGE * 4

    def _word(self, port: Port) -> int:
        page, offset = self._place(port)
        return int(_WORD.unpack(page.read(offset, 4))[0])

    def _set(self, port: Port, bit: int) -> bool:
        page, offset = self._place(port)
        shift = 8 * (offset % 8)
        return bool(page.fetch_or_64(offset - offset % 8, bit << shift) >> shift & bit)

    def _clear(self, port: Port, bits: int) -> None:
        page, offset = self._place(port)
        page.fetch_and_64(offset - offset % 8, ~(bits << 8 * (offset % 8)) & (1 << 64) - 1)
