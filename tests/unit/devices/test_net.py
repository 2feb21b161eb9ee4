"""The vif back end: `--net`, offloads, and a front end's packets, honest or not, over a wire that is a pair of sockets."""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.frontend import DEADLINE_S, Guest, Ring, wait
from vmm.devices.bus.xenbus import Bound
from vmm.devices.net.offload import HEADER, NEEDS_CSUM, PLAIN, NoTransport, Transport, find_transport, header_for
from vmm.devices.net.protocol import (
    EXTRA,
    EXTRA_GSO,
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
from vmm.devices.net.queue import NetQueue, Options
from vmm.devices.net.spec import parse_net
from vmm.devices.net.wire import Gone
from vmm.devices.ring.granted import GrantedPages
from vmm.errors import UsageError
from vmm.xenabi.values import Domid

TCPV4 = bytes.fromhex(
    "ffffffffffff00163e0000010800"  # Ethernet, IPv4, TCP
    "4500002800004000400600000a0000010a000002"
    "0001000200000000000000005010000000000000"
)
TCPV6 = b"\xff" * 12 + bytes.fromhex("86dd6000000000140640") + bytes(32) + TCPV4[34:]
ALL = Options(scatter_gather=True, gso=frozenset({Gso.TCPV4, Gso.TCPV6}))


class SocketWire:
    """What a tap device does, between two sockets."""

    offloads = True

    def __init__(self) -> None:
        self._socket, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._socket, self.host):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self._socket.setblocking(False)
        self.host.settimeout(DEADLINE_S)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, header: bytes, views: Sequence[memoryview]) -> bool:
        self._socket.sendmsg([header, *views])
        return True

    def receive(self, header: bytearray, views: Sequence[memoryview]) -> int | None:
        try:
            size = self._socket.recvmsg_into([header, *views])[0]
        except BlockingIOError:
            return None
        if not size:
            raise Gone("the wire is gone")
        return size - HEADER.size

    def close(self) -> None:
        self._socket.close()
        self.host.close()


class Frontend:
    """A front end: transmit ring at gfn 0, receive ring at gfn 1, data from gfn 2 on."""

    def __init__(self, options: Options = ALL) -> None:
        self.guest = Guest(pages=80)
        self.wire = SocketWire()
        self.failures: list[str] = []
        self.tx = Ring(self.guest.memory.page(0), TX_REQUEST.size)
        self.rx = Ring(self.guest.memory.page(1), RX_REQUEST.size)
        self.rings = [self.guest.grant(0), self.guest.grant(1)]
        pages = GrantedPages(self.guest.grants, self.guest.memory)
        self.queue = NetQueue("vif0-0", self.wire, pages, *self.rings, options, self.failures.append)
        self.ports = []
        bound = []
        for bell in (self.queue.tx_bell, self.queue.rx_bell):
            port = self.guest.events.alloc_unbound(Domid(0))
            self.guest.events.connect(port, Domid(0), bell)
            bound.append(Bound(self.guest.events, port, bell))
            self.ports.append(port)
        self.queue.start(bound[0], bound[1])

    def grant_data(self, gfn: int, data: bytes = b"", *, readonly: bool = True) -> int:
        self.guest.memory.page(gfn)[: len(data)] = data
        return self.guest.grant(gfn, readonly=readonly)

    def transmit(self, *requests: bytes) -> list[tuple[int, int]]:
        """Send requests and wait for as many responses: (id, status)."""
        for request in requests:
            self.tx.put(request)
        self.guest.events.send(self.ports[0])
        found: list[bytes] = []
        wait(
            lambda: bool(found.extend(self.tx.responses(TX_RESPONSE.size)) or len(found) >= len(requests) or self.failures)
        )
        return [TX_RESPONSE.unpack(response) for response in found]

    def post(self, count: int, first_gfn: int = 10) -> list[int]:
        """Room to receive in: the references."""
        refs = []
        for number in range(count):
            refs.append(self.guest.grant(first_gfn + number))
            self.rx.put(RX_REQUEST.pack(number, refs[-1]))
        self.guest.events.send(self.ports[1])
        return refs

    def received(self, count: int) -> list[bytes]:
        found: list[bytes] = []
        wait(lambda: bool(found.extend(self.rx.responses(RX_RESPONSE.size)) or len(found) >= count))
        assert len(found) == count
        return found

    def close(self) -> None:
        done: list[bool] = []
        self.queue.stop(lambda: done.append(True))
        wait(lambda: bool(done))
        self.wire.close()
        assert self.guest.in_use() == []


@pytest.fixture
def front() -> Iterator[Frontend]:
    made = Frontend()
    yield made
    made.close()


def request(ref: int, size: int, *, flags: int = 0, number: int = 0, offset: int = 0) -> bytes:
    return TX_REQUEST.pack(ref, offset, flags, number, size)


def test_a_packet_goes_out_as_it_is(front: Frontend) -> None:
    ref = front.grant_data(2, b"...." + bytes(60))
    assert front.transmit(request(ref, 60, number=9, offset=4)) == [(9, Status.OKAY)]
    assert front.wire.host.recv(4096) == PLAIN + bytes(60)


def test_pieces_become_one_packet(front: Frontend) -> None:
    first, second = front.grant_data(2, b"a" * 4096), front.grant_data(3, b"b" * 100)
    answers = front.transmit(request(first, 4196, flags=TX_MORE_DATA, number=1), request(second, 100, number=2))
    assert answers == [(1, Status.OKAY), (2, Status.OKAY)]
    assert front.wire.host.recv(9000) == PLAIN + b"a" * 4096 + b"b" * 100
    assert front.guest.in_use() == front.rings


@pytest.mark.parametrize(("frame", "kind", "number", "start"), [(TCPV4, Gso.TCPV4, 1, 34), (TCPV6, Gso.TCPV6, 4, 54)])
def test_blank_checksum_and_segments_are_told_to_the_host(
    front: Frontend, frame: bytes, kind: Gso, number: int, start: int
) -> None:
    ref = front.grant_data(2, frame)
    assert front.transmit(request(ref, len(frame), flags=TX_CSUM_BLANK)) == [(0, Status.OKAY)]
    assert front.wire.host.recv(4096)[:10] == HEADER.pack(NEEDS_CSUM, 0, 0, 0, start, 16)
    extra = EXTRA.pack(Extra.GSO, 0, EXTRA_GSO.pack(1448, kind, 0))
    answers = front.transmit(request(ref, len(frame), flags=TX_CSUM_BLANK | TX_EXTRA_INFO, number=4), extra)
    assert answers == [(4, Status.OKAY), (0, Status.NULL)]
    assert front.wire.host.recv(4096) == HEADER.pack(NEEDS_CSUM, number, start + 20, 1448, start, 16) + frame


def test_a_packet_that_cannot_be_is_answered_with_an_error(front: Frontend) -> None:
    ref = front.grant_data(2, bytes(4096))
    for requests in (
        [request(ref, 13)],  # less than an Ethernet header
        [request(ref, 100, offset=4000)],  # beyond its page
        [request(999, 60)],
        [request(front.guest.grant(2, to=7), 60)],
        [request(ref, 60, flags=TX_CSUM_BLANK)],  # nothing that has a checksum
        [request(ref, 50, flags=TX_MORE_DATA), request(ref, 60)],  # smaller than its parts
        [request(ref, 60, flags=TX_MORE_DATA)] * 18 + [request(ref, 60)],  # too many pieces
    ):
        assert {status for _, status in front.transmit(*requests)} == {Status.ERROR}, requests
    assert front.guest.in_use() == front.rings
    assert front.transmit(request(ref, 60)) == [(0, Status.OKAY)]
    assert front.wire.host.recv(4096) == PLAIN + bytes(60)


@pytest.mark.parametrize(
    ("requests", "reason"),
    [
        ([request(8, 60, flags=TX_EXTRA_INFO), *[EXTRA.pack(Extra.HASH, 1, bytes(6))] * 9], "without end"),
        ([request(8, 60, flags=TX_MORE_DATA)] * 25, "more than 20 pieces"),
        ([request(8, 60, flags=TX_EXTRA_INFO), EXTRA.pack(Extra.GSO, 0, EXTRA_GSO.pack(0, 1, 0))], "GSO type 1"),
        ([request(8, 60, flags=TX_EXTRA_INFO), EXTRA.pack(Extra.GSO, 0, EXTRA_GSO.pack(9, 7, 0))], "GSO type 7"),
    ],
)
def test_a_front_end_that_breaks_the_protocol_loses_its_card(front: Frontend, requests: list[bytes], reason: str) -> None:
    front.transmit(*requests)
    assert len(front.failures) == 1
    assert reason in front.failures[0]


def test_a_packet_comes_in_with_its_flags(front: Frontend) -> None:
    refs = front.post(20)
    front.wire.host.send(HEADER.pack(NEEDS_CSUM, 0, 0, 0, 34, 16) + TCPV4)
    (response,) = front.received(1)
    assert RX_RESPONSE.unpack(response) == (0, 0, RX_CSUM_BLANK | RX_DATA_VALIDATED, len(TCPV4))
    assert bytes(front.guest.memory.page(10)[: len(TCPV4)]) == TCPV4
    assert not front.guest.flags(refs[0]) & 0x18


def test_a_large_packet_to_be_cut_has_an_extra_slot(front: Frontend) -> None:
    front.post(20)
    data = bytes(range(256)) * 40
    front.wire.host.send(HEADER.pack(NEEDS_CSUM, 1, 54, 1448, 34, 16) + data)
    found = front.received(4)
    told = RX_CSUM_BLANK | RX_DATA_VALIDATED | RX_EXTRA_INFO | RX_MORE_DATA
    assert RX_RESPONSE.unpack(found[0]) == (0, 0, told, 4096)
    assert EXTRA.unpack(found[1]) == (Extra.GSO, 0, EXTRA_GSO.pack(1448, Gso.TCPV4, 0))
    assert [RX_RESPONSE.unpack(response) for response in found[2:]] == [(2, 0, RX_MORE_DATA, 4096), (3, 0, 0, 2048)]
    pages = [bytes(front.guest.memory.page(gfn)) for gfn in (10, 12, 13)]
    assert b"".join(pages)[: len(data)] == data


def test_a_large_packet_that_is_whole_has_none(front: Frontend) -> None:
    front.post(20)
    data = bytes(range(256)) * 34
    front.wire.host.send(PLAIN + data)
    found = [RX_RESPONSE.unpack(response) for response in front.received(3)]
    assert found == [(0, 0, RX_MORE_DATA, 4096), (1, 0, RX_MORE_DATA, 4096), (2, 0, 0, 512)]
    assert b"".join(bytes(front.guest.memory.page(gfn)) for gfn in (10, 11, 12))[: len(data)] == data


def test_packets_wait_until_the_guest_has_room(front: Frontend) -> None:
    front.wire.host.send(PLAIN + bytes(60))
    front.post(10)
    time.sleep(0.02)
    assert front.rx.responses(8) == []
    front.post(10, first_gfn=20)
    assert len(front.received(1)) == 1
    assert not front.failures


def test_room_that_was_not_granted_is_answered_with_an_error() -> None:
    front = Frontend(Options())
    front.rx.put(RX_REQUEST.pack(5, 999))
    front.rx.put(RX_REQUEST.pack(6, front.guest.grant(10, readonly=True)))
    front.post(1)
    front.wire.host.send(PLAIN + bytes(60))
    found = [RX_RESPONSE.unpack(response) for response in front.received(3)]
    assert found == [(5, 0, 0, Status.ERROR), (6, 0, 0, Status.ERROR), (0, 0, 0, 60)]
    front.close()


def test_only_groups_that_were_asked_for_come_in() -> None:
    front = Frontend(Options(multicast_control=True))
    group, other = b"\x01\x00\x5e\x00\x00\x01", b"\x01\x00\x5e\x00\x00\x02"
    ref = front.grant_data(2)
    front.post(8)
    extra = EXTRA.pack(Extra.MCAST_ADD, 0, group)
    assert front.transmit(request(ref, 0, flags=TX_EXTRA_INFO, number=1), extra) == [(1, Status.OKAY), (0, Status.NULL)]
    for address in (other, group, b"\xff" * 6, b"\x00\x16\x3e\x00\x00\x01"):
        front.wire.host.send(PLAIN + address + bytes(54))
    assert len(front.received(3)) == 3
    assert [bytes(front.guest.memory.page(10 + n)[:6])[0] for n in range(3)] == [1, 0xFF, 0]
    front.transmit(request(ref, 0, flags=TX_EXTRA_INFO), EXTRA.pack(Extra.MCAST_DEL, 0, group))
    front.wire.host.send(PLAIN + group + bytes(54))
    front.wire.host.send(PLAIN + bytes(60))
    assert len(front.received(1)) == 1
    front.close()


def test_a_wire_that_is_gone_closes_the_card(front: Frontend) -> None:
    front.post(20)
    front.wire.host.close()
    wait(lambda: bool(front.failures))
    assert front.failures == ["the wire is gone"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.integers(6, 14), st.integers(0, 70), st.integers(0, 15), st.integers(0, 70)).map(
            lambda fields: TX_REQUEST.pack(fields[0], fields[1], fields[2], 0, fields[3])
        )
        | st.binary(min_size=12, max_size=12),
        max_size=30,
    )
)
def test_any_requests_are_answered_or_close_the_card(requests: list[bytes]) -> None:
    front = Frontend()
    for gfn in range(2, 8):
        front.grant_data(gfn)
    for one in requests:
        front.tx.put(one)
    front.guest.events.send(front.ports[0])
    time.sleep(0.002)
    front.close()
    assert len(front.tx.responses(4)) <= len(requests)
    assert len(front.failures) <= 1


# ------------------------------------------------------------------------------------------ headers


def test_transport_is_found_behind_tags_options_and_extensions() -> None:
    tagged = TCPV4[:12] + bytes.fromhex("81000005") + TCPV4[12:]
    assert find_transport(TCPV4) == Transport(34, 16, 54)
    assert find_transport(tagged) == Transport(38, 16, 58)
    udp = TCPV4[:23] + b"\x11" + TCPV4[24:]
    assert find_transport(udp) == Transport(34, 6, 42)
    extended = TCPV6[:20] + b"\0" + TCPV6[21:54] + b"\x06" + bytes(7) + TCPV6[54:]
    assert find_transport(extended) == Transport(62, 16, 82)
    with pytest.raises(NoTransport):
        find_transport(TCPV4[:40])


@given(st.binary(max_size=120), st.sampled_from([b"", TCPV4[:14], TCPV6[:14], TCPV4[:12] + b"\x81\0\0\1\x08\0"]))
def test_any_bytes_have_a_transport_within_them_or_none(data: bytes, head: bytes) -> None:
    frame = head + data
    try:
        found = find_transport(frame)
    except NoTransport:
        with pytest.raises(NoTransport):
            header_for(frame, Gso.TCPV4, 1)
    else:
        assert 14 < found.start < found.end <= len(frame)


# ------------------------------------------------------------------------------------------ options


def test_options_of_a_card() -> None:
    net = parse_net("tap:mine,mac=00:16:3E:00:00:01,mtu=9000,queues=4")
    assert (net.kind, net.name, net.mac, net.mtu, net.queues) == ("tap", "mine", "00:16:3e:00:00:01", 9000, 4)
    assert parse_net("bridge:xenbr0").name == "xenbr0"
    user = parse_net("user,hostfwd=tcp::8080-:80,hostfwd=udp:127.0.0.1:53-:53")
    assert user.forwards == (("tcp", "", 8080, 80), ("udp", "127.0.0.1", 53, 53))
    assert parse_net("tap").mac != parse_net("tap").mac


@pytest.mark.parametrize(
    "text",
    [
        "", "wifi", "bridge", "user:x", "tap:name-that-is-too-long", "tap,mac=1", "tap,mac=01:00:5e:00:00:01", "tap,mtu=1",
        "tap,queues=9", "user,queues=2", "tap,hostfwd=tcp::1-:2", "user,hostfwd=tcp::0-:80", "user,hostfwd=tcp:80", "tap,x",
    ],
)  # fmt: skip
def test_a_card_that_cannot_be_meant_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_net(text)


def test_extra_information_stands_where_a_request_would() -> None:
    assert EXTRA.size == RX_RESPONSE.size == RX_REQUEST.size == 8
    assert struct.calcsize("<HBxH") == EXTRA_GSO.size == 6


def test_a_guest_that_posts_bad_room_for_ever_does_not_keep_its_queue_from_ending() -> None:
    front, stop = Frontend(), threading.Event()

    def flood() -> None:
        while not stop.is_set():
            front.rx.indices[0] = front.rx.indices[2] + front.rx.entries & 0xFFFF_FFFF  # all of them, of reference 0
            front.guest.events.send(front.ports[1])

    thread = threading.Thread(target=flood)
    thread.start()
    front.wire.host.send(HEADER.pack(*(0,) * 6) + b"x" * 60)
    time.sleep(0.1)
    ended = threading.Event()
    front.queue.stop(ended.set)
    assert ended.wait(DEADLINE_S), "it never looks at what else there is to do"
    stop.set()
    thread.join()
