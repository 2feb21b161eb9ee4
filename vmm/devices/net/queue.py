"""One pair of rings of a network card and the thread that serves it.

Everything that a front end's packets may do lives here.  Data go between the guest's own pages and the wire in one
system call; requests and the headers of a packet are copied before they are looked at.
"""

from collections import Counter, deque
from collections.abc import Callable
from itertools import compress
from typing import NamedTuple

from vmm.devices.bus.xenbus import Bound
from vmm.devices.net.offload import (
    DATA_VALID,
    FROM_HEADER,
    GSO_ECN,
    HEADER,
    NEEDS_CSUM,
    PEEK_BYTES,
    PLAIN,
    NoTransport,
    header_for,
)
from vmm.devices.net.protocol import (
    EXTRA,
    EXTRA_GSO,
    EXTRA_MORE,
    MAX_EXTRAS,
    MAX_PACKET_BYTES,
    MAX_SLOTS,
    RX_CSUM_BLANK,
    RX_DATA_VALIDATED,
    RX_EXTRA_INFO,
    RX_MORE_DATA,
    RX_REQUEST,
    RX_RESPONSE,
    TX_CSUM_BLANK,
    TX_EXTRA_INFO,
    TX_MORE_DATA,
    TX_REQUEST,
    TX_RESPONSE,
    Extra,
    Gso,
    Status,
)
from vmm.devices.net.wire import Gone, Wire
from vmm.devices.ring.granted import GrantedPages
from vmm.host.eventloop import EventLoop
from vmm.xenabi.byte_ring import RingBroken
from vmm.xenabi.constants import PAGE_BYTES
from vmm.xenabi.values import XenError

ETHERNET_BYTES, VLAN_BYTES = 14, 4
FATAL_SLOTS = 20
"""Pieces of a packet that no honest front end sends (Linux's back end draws the line there, too)."""
PACKETS_A_TURN = 64
POSTS_A_TURN = 4
"""Times that a guest's room is taken over before its other work has its turn: it may post what cannot be used, for ever."""

PUSH_BYTES = 1 << 16
"""Received bytes that the guest is shown at the latest: it works on them while the next are read."""

TURNS = 16
"""Times that the ring is emptied before the thread looks at what else there is to do."""
BROADCAST = b"\xff" * 6
MAX_MULTICAST = 64


class Options(NamedTuple):
    """What the front end takes."""

    scatter_gather: bool = False
    gso: frozenset[Gso] = frozenset()
    mtu: int = 1500
    multicast_control: bool = False


class PacketBroken(Exception):
    """The front end has sent what no packet can be; the card is closed."""


class _Piece(NamedTuple):
    """A transmit request."""

    ref: int
    offset: int
    flags: int
    id: int
    size: int


class NetQueue:
    """Owned by its own thread after `start`."""

    def __init__(
        self, name: str, wire: Wire, pages: GrantedPages, tx_ref: int, rx_ref: int, options: Options,
        failed: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._wire = wire
        self._pages = pages
        self._options = options
        self._failed = failed
        self._refs: list[int] = []
        self._tx = pages.map_ring([tx_ref], TX_REQUEST.size)
        self._refs.append(tx_ref)
        try:
            self._rx = pages.map_ring([rx_ref], RX_REQUEST.size)
        except XenError:
            pages.unmap(tx_ref, write=True)
            raise
        self._refs.append(rx_ref)
        self._pending: deque[bytes] = deque()
        # Receive requests: ids, references, and pages, mapped.  From `_shown` to `_next` their responses wait to be pushed.
        self._ids: list[int] = []
        self._posted: list[int] = []
        self._buffers: list[memoryview] = []
        self._shown = self._next = 0
        self._received: list[bytes] = []  # those responses
        self._header = bytearray(HEADER.size)
        self._multicast: set[bytes] = set()
        self._stalled = False
        self._broken = False
        self.counters: Counter[str] = Counter()
        largest = MAX_PACKET_BYTES if options.gso else options.mtu + ETHERNET_BYTES + VLAN_BYTES
        # One more than the data needs: with segments to cut, the second slot tells of them.
        self._needed = -(-largest // PAGE_BYTES) + 1 if options.scatter_gather else 1
        self._tx_channel: Bound | None = None
        self._rx_channel: Bound | None = None
        self._loop = EventLoop(name)
        self.tx_bell = self._loop.doorbell(self._guarded(self._transmit))
        self.rx_bell = self._loop.doorbell(self._guarded(self._room))
        self.both_bell = self._loop.doorbell(self._guarded(self._transmit_and_room))
        self._receive_some = self._guarded(self._receive)

    def start(self, tx_channel: Bound, rx_channel: Bound) -> None:
        """Serve the rings; both channels may be the same."""
        self._tx_channel, self._rx_channel = tx_channel, rx_channel
        self._loop.watch(self._wire.fileno(), self._receive_some)
        self._loop.start()
        self.tx_bell.ring()

    def stop(self, done: Callable[[], None]) -> None:
        """Unmap everything, end the thread, then call `done` in it.  From any thread."""

        def end() -> None:
            for channel in {bound for bound in (self._tx_channel, self._rx_channel) if bound is not None}:
                channel.close()
            self._broken = True
            self._pages.unmap_all([*self._posted[self._shown :], *self._refs], write=True)
            done()

        self._loop.end(end)

    def _guarded(self, serve: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            if self._broken:
                return
            try:
                serve()
            except (RingBroken, PacketBroken) as error:
                self._fail(f"the front end broke its ring: {error}")
            except Gone as error:
                self._fail(str(error))

        return guarded

    def _fail(self, why: str) -> None:
        self._broken = True
        if not self._stalled:
            self._loop.unwatch(self._wire.fileno())
        self._failed(why)

    # ------------------------------------------------------------------------------ from the guest

    def _transmit(self) -> None:
        ring = self._tx
        for _ in range(TURNS):
            self._pending.extend(ring.take())
            while self._transmit_one():
                pass
            if ring.push() and self._tx_channel is not None:
                self._tx_channel.notify()
            if not ring.rearm():
                return
        self.tx_bell.ring()

    def _transmit_one(self) -> bool:
        """Send the next packet; False where not all of it is there."""
        pending = self._pending
        if not pending:
            return False
        pieces = [_Piece(*TX_REQUEST.unpack(pending[0]))]
        extras: list[tuple[int, int, bytes]] = []
        taken = 1
        if pieces[0].flags & TX_EXTRA_INFO:
            while not extras or extras[-1][1] & EXTRA_MORE:
                if taken == len(pending):
                    return False
                extras.append(EXTRA.unpack_from(pending[taken]))
                taken += 1
                if len(extras) > MAX_EXTRAS:
                    raise PacketBroken("a packet with extra information without end")
        while pieces[-1].flags & TX_MORE_DATA:
            if taken == len(pending):
                return False
            pieces.append(_Piece(*TX_REQUEST.unpack(pending[taken])))
            taken += 1
            if len(pieces) > FATAL_SLOTS:
                raise PacketBroken(f"a packet of more than {FATAL_SLOTS} pieces")
        for _ in range(taken):
            pending.popleft()
        status = self._packet(pieces, extras)
        respond = self._tx.respond
        respond(TX_RESPONSE.pack(pieces[0].id, status))
        for _ in extras:
            respond(TX_RESPONSE.pack(0, Status.NULL))
        for piece in pieces[1:]:
            respond(TX_RESPONSE.pack(piece.id, status))
        return True

    def _packet(self, pieces: list[_Piece], extras: list[tuple[int, int, bytes]]) -> Status:
        gso, segment = Gso.NONE, 0
        for kind, _, body in extras:
            if kind == Extra.GSO:
                segment, number, _ = EXTRA_GSO.unpack(body)
                if number not in (Gso.TCPV4, Gso.TCPV6) or not segment:
                    raise PacketBroken(f"GSO type {number} with segments of {segment} bytes")
                gso = Gso(number)
            elif kind in (Extra.MCAST_ADD, Extra.MCAST_DEL):
                return self._heed_multicast(kind, body)
        total, rest = pieces[0].size, sum(piece.size for piece in pieces[1:])
        first = total - rest
        if first <= 0 or total < ETHERNET_BYTES or len(pieces) > MAX_SLOTS:
            return Status.ERROR
        sizes = [first, *(piece.size for piece in pieces[1:])]
        places = [(piece.offset, piece.offset + size) for piece, size in zip(pieces, sizes, strict=True)]
        if any(end > PAGE_BYTES for _, end in places):
            return Status.ERROR
        refs = [piece.ref for piece in pieces]
        pages = self._pages.map_all(refs, write=False)
        mapped = list(filter(None, pages))
        try:
            if len(mapped) < len(pages):
                return Status.ERROR
            views = [page[start:end] for page, (start, end) in zip(mapped, places, strict=True)]
            header = PLAIN
            if pieces[0].flags & TX_CSUM_BLANK or gso is not Gso.NONE:
                head = b"".join(bytes(view[:PEEK_BYTES]) for view in views[:2])[:PEEK_BYTES]
                header = header_for(head, gso, segment)
            if not self._wire.send(header, views):
                return Status.DROPPED
            self.counters["packets from the guest"] += 1
            self.counters["bytes from the guest"] += total
            return Status.OKAY
        except NoTransport:
            return Status.ERROR
        finally:
            self._pages.unmap_all(list(compress(refs, pages)), write=False)

    def _heed_multicast(self, kind: int, address: bytes) -> Status:
        if not self._options.multicast_control or not address[0] & 1:
            return Status.ERROR
        if kind == Extra.MCAST_DEL:
            self._multicast.discard(address)
        elif len(self._multicast) >= MAX_MULTICAST:
            return Status.ERROR
        else:
            self._multicast.add(address)
        return Status.OKAY

    # -------------------------------------------------------------------------------- to the guest

    def _room(self) -> None:
        """The guest has posted more room to receive in."""
        if self._stalled:
            self._stalled = False
            self._loop.watch(self._wire.fileno(), self._receive_some)

    def _transmit_and_room(self) -> None:
        self._transmit()
        self._room()

    def _receive(self) -> None:
        needed, receive = self._needed, self._wire.receive
        unseen = 0
        for _ in range(PACKETS_A_TURN):
            if not self._prepare():
                break
            views = self._buffers[self._next : self._next + needed]
            del views[1:2]
            size = receive(self._header, views)
            if size is None:
                break
            if size > 0 and self._wanted(views[0]):
                self._hand_over(size)
                unseen += size
                if unseen >= PUSH_BYTES:
                    unseen = 0
                    self._push_received()
        self._push_received()

    def _push_received(self) -> None:
        self._pages.unmap_all(self._posted[self._shown : self._next], write=True)
        self._shown = self._next
        self._rx.respond_all(b"".join(self._received))
        self._received.clear()
        if self._rx.push() and self._rx_channel is not None:
            self._rx_channel.notify()

    def _prepare(self) -> bool:
        """Have room for the largest packet; False where the guest has to post more first."""
        for _ in range(POSTS_A_TURN):
            if len(self._buffers) - self._next >= self._needed:
                return True
            self._push_received()
            posted = self._rx.take_bytes()
            if not posted:
                if self._rx.rearm(self._needed - len(self._buffers) + self._next):
                    continue
                self._stalled = True
                self._loop.unwatch(self._wire.fileno())
                return False
            for row in (self._ids, self._posted, self._buffers):
                del row[: self._next]
            self._shown = self._next = 0
            ids, refs = map(list, zip(*RX_REQUEST.iter_unpack(posted), strict=True))
            pages = self._pages.map_all(refs, write=True)
            for number, page in zip(ids, pages, strict=True):
                if page is None:
                    self._received.append(RX_RESPONSE.pack(number, 0, 0, Status.ERROR))
            self._ids += compress(ids, pages)
            self._posted += compress(refs, pages)
            self._buffers += filter(None, pages)
        return len(self._buffers) - self._next >= self._needed  # else the wire calls again, after whoever else waits

    def _wanted(self, page: memoryview) -> bool:
        if not self._options.multicast_control or not page[0] & 1:
            return True
        address = bytes(page[:6])
        return address == BROADCAST or address in self._multicast

    def _hand_over(self, size: int) -> None:
        self.counters["packets to the guest"] += 1
        self.counters["bytes to the guest"] += size
        flags, kind, _, segment, _, _ = HEADER.unpack(self._header)
        gso = FROM_HEADER.get(kind & ~GSO_ECN, Gso.NONE)
        told = 0
        if flags & NEEDS_CSUM:
            told = RX_CSUM_BLANK | RX_DATA_VALIDATED
        elif flags & DATA_VALID:
            told = RX_DATA_VALIDATED
        at, buffers, respond, pack = self._next, self._buffers, self._received.append, RX_RESPONSE.pack
        last = -(-size // PAGE_BYTES) - 1
        more = RX_MORE_DATA if last else 0
        ids = self._ids[at : at + last + 2]
        if gso is not Gso.NONE:
            respond(pack(ids.pop(0), 0, told | more | RX_EXTRA_INFO, min(size, PAGE_BYTES)))
            respond(EXTRA.pack(Extra.GSO, 0, EXTRA_GSO.pack(segment, gso, 0)))
            self._next += 1
        else:
            # The second slot was left out, for segments that do not come: a large frame moves up by a page.
            for index in range(at + 1, at + last + 1):
                part = min(size - (index - at) * PAGE_BYTES, PAGE_BYTES)
                buffers[index][:part] = buffers[index + 1][:part]
            respond(pack(ids[0], 0, told | more, min(size, PAGE_BYTES)))
        if last:
            for number in ids[1:last]:
                respond(pack(number, 0, RX_MORE_DATA, PAGE_BYTES))
            respond(pack(ids[last], 0, 0, size - last * PAGE_BYTES))
        self._next += last + 1
