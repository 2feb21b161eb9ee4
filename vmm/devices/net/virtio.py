"""A virtio network card over the networks that the Xen back end has, too.

Source: Virtual I/O Device Specification 1.1, 5.1.
"""

import struct
from collections import deque
from collections.abc import Callable, Sequence

from vmm.devices.net.backend import Network
from vmm.devices.net.offload import HEADER, PLAIN
from vmm.devices.net.spec import Net
from vmm.devices.net.tap import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6
from vmm.devices.net.wire import Gone, Wire
from vmm.devices.virtio.pci import Interrupt
from vmm.devices.virtio.ring import Chain, QueueBroken, VirtQueue, split
from vmm.host import log
from vmm.host.eventloop import EventLoop

_CSUM, _GUEST_CSUM, _MTU, _MAC, _GUEST_TSO4, _GUEST_TSO6, _HOST_TSO4, _HOST_TSO6, _STATUS = (
    1 << bit for bit in (0, 1, 3, 5, 7, 8, 11, 12, 16)
)
_TO_TUN = {_GUEST_CSUM: TUN_F_CSUM, _GUEST_TSO4: TUN_F_TSO4, _GUEST_TSO6: TUN_F_TSO6}
_LINK_UP = 1
_HEADER_BYTES = HEADER.size + 2
"""The header of a packet, and the number of buffers that it takes: one."""
_ONE_BUFFER = b"\x01\x00"
TURNS = 64
RECEIVE, TRANSMIT = 0, 1


class NetDevice:
    """One card with one pair of queues, served by one thread."""

    number = 1
    pci_class = 0x020000
    queues = 2

    def __init__(self, net: Net, network: Network) -> None:
        self._network = network
        self.features = _MTU | _MAC | _STATUS
        if network.offloads:
            self.features |= _CSUM | _GUEST_CSUM | _GUEST_TSO4 | _GUEST_TSO6 | _HOST_TSO4 | _HOST_TSO6
        address = bytes.fromhex(net.mac.replace(":", ""))
        self.config = struct.pack("<6sHHH", address, _LINK_UP, 1, net.mtu)
        self.release = network.close

    def open(self, features: int, queues: Sequence[tuple[VirtQueue, Interrupt]]) -> "Sequence[NetServer]":
        """One server for both queues."""
        if len(queues) < self.queues:
            raise QueueBroken("a card without both of its queues")
        offload = sum(flag for feature, flag in _TO_TUN.items() if features & feature) if self._network.offloads else 0
        wire = self._network.wires(1, offload)[0]
        return [NetServer(wire, queues[RECEIVE], queues[TRANSMIT])] * self.queues

    def closed(self) -> None:
        """Its wire is not used any more."""
        self._network.unplug()


class NetServer:
    """Both queues.  Owned by its own thread after `start`."""

    def __init__(self, wire: Wire, receive: tuple[VirtQueue, Interrupt], transmit: tuple[VirtQueue, Interrupt]) -> None:
        self._wire = wire
        self._receive_queue, self._receive_interrupt = receive
        self._transmit_queue, self._transmit_interrupt = transmit
        self._room: deque[Chain] = deque()
        self._watching = self._broken = False
        self._header = bytearray(HEADER.size)
        self._loop = EventLoop("virtio-net")
        self.bell = self._loop.doorbell(self._guarded(self._rung))
        self._packets_wait = self._guarded(self._receive)

    def start(self) -> None:
        """Begin to move packets, in a thread of its own."""
        self._loop.start()
        self.bell.ring()

    def stop(self, done: Callable[[], None]) -> None:
        """End that thread, and then call `done`."""
        self._loop.end(done)

    def _guarded(self, serve: Callable[[], None]) -> Callable[[], None]:
        def guarded() -> None:
            if self._broken:
                return
            try:
                serve()
            except (QueueBroken, Gone) as error:
                self._broken = True
                self._watch(False)
                log.get(__name__).warning("a network card is closed", reason=str(error))

        return guarded

    def _watch(self, wanted: bool) -> None:
        if wanted != self._watching:
            self._watching = wanted
            if wanted:
                self._loop.watch(self._wire.fileno(), self._packets_wait)
            else:
                self._loop.unwatch(self._wire.fileno())

    def _rung(self) -> None:
        self._transmit()
        self._watch(True)  # there may be room again

    def _transmit(self) -> None:
        queue = self._transmit_queue
        for _ in range(TURNS):
            chains = queue.take()
            if not chains and not queue.rearm():
                return
            for chain in chains:
                head, views = split(chain.readable, _HEADER_BYTES)
                if len(head) == _HEADER_BYTES and views:
                    self._wire.send(head[: HEADER.size] if self._wire.offloads else PLAIN, views)
                queue.give_back(chain, 0)
            if queue.push():
                self._transmit_interrupt()
        self.bell.ring()

    def _receive(self) -> None:
        queue = self._receive_queue
        for _ in range(TURNS):
            if not self._room:
                self._room.extend(queue.take())
                if not self._room:
                    if queue.rearm():
                        continue
                    self._watch(False)
                    break
            chain = self._room[0]
            _, views = split(chain.writable, _HEADER_BYTES)
            size = self._wire.receive(self._header, views)
            if size is None:
                break
            if size > 0:
                _fill(chain.writable, bytes(self._header) + _ONE_BUFFER)
                queue.give_back(self._room.popleft(), _HEADER_BYTES + size)
        if queue.push():
            self._receive_interrupt()


def _fill(views: Sequence[memoryview], data: bytes) -> None:
    for view in views:
        view[: len(data)], data = data[: len(view)], data[len(view) :]
        if not data:
            return
