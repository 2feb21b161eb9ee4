"""The vif back end: what it offers in xenstore, its queues, their wires.  Source: xen/include/public/io/netif.h."""

from collections.abc import Callable, Sequence
from typing import Protocol

from vmm.devices.bus.xenbus import Bound, Frontend, FrontendError
from vmm.devices.counters import Totals
from vmm.devices.net.protocol import Gso
from vmm.devices.net.queue import NetQueue, Options
from vmm.devices.net.spec import Net
from vmm.devices.net.tap import TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TapDevice
from vmm.devices.net.wire import Wire
from vmm.devices.stopping import stop_all
from vmm.xenabi.values import XenError

MAX_QUEUES = 8
_GSO_KEYS = {"feature-gso-tcpv4": (Gso.TCPV4, TUN_F_TSO4), "feature-gso-tcpv6": (Gso.TCPV6, TUN_F_TSO6)}


class Network(Protocol):
    """What a card is plugged into."""

    offloads: bool

    def wires(self, queues: int, offload: int) -> Sequence[Wire]:
        """A wire for each queue; `offload` holds TUN_F_* for what the guest completes itself.  OSError."""
        ...

    def unplug(self) -> None:
        """The wires are not used any more, until `wires` is called again."""
        ...

    def close(self) -> None:
        """Let it go; no wire is used any more."""
        ...


def open_net(net: Net, handle: int, vcpus: int) -> "NetBackend":
    """The back end of a card that somebody asks for.  PyvmmError."""
    queues = 1 if net.kind == "user" else min(net.queues or vcpus, MAX_QUEUES)
    return NetBackend(net, handle, open_network(net, queues), queues)


def open_network(net: Net, queues: int) -> Network:
    """What a card is plugged into, for at most so many queues.  PyvmmError."""
    if net.kind == "user":
        from vmm.devices.net.passt import UserNetwork

        return UserNetwork(net)
    return TapDevice(net, several=queues > 1)


class NetBackend:
    """One card.  Its methods belong to xenstore's thread; its queues have threads of their own."""

    kind = "vif"
    fixed = frozenset({"mtu"})

    def __init__(self, net: Net, handle: int, network: Network, max_queues: int) -> None:
        self.handle = handle
        self._net = net
        self._network = network
        self._max_queues = max_queues
        self._queues: list[NetQueue] = []
        self._totals = Totals()

    def toolstack_keys(self) -> dict[str, str]:
        """As libxl writes them; there are no hotplug scripts."""
        bridge = {"bridge": self._net.name} if self._net.kind == "bridge" else {}
        return {"mac": self._net.mac, **bridge, "handle": str(self.handle), "type": "vif"}

    def frontend_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"handle": str(self.handle), "mac": self._net.mac, "trusted": "1", "mtu": str(self._net.mtu)}

    def features(self) -> dict[str, str]:
        """What is known before the front end is there; as Linux's back end names them."""
        offloads = "1" if self._network.offloads else "0"
        return {
            "feature-sg": "1",
            "feature-gso-tcpv4": offloads,
            "feature-gso-tcpv6": offloads,
            "feature-ipv6-csum-offload": offloads,
            "feature-rx-copy": "1",
            "feature-rx-flip": "0",
            "feature-multicast-control": "1",
            "feature-dynamic-multicast-control": "1",
            "feature-split-event-channels": "1",
            "multi-queue-max-queues": str(self._max_queues),
        }

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        """Serve its rings.  FrontendError, OSError."""
        if not frontend.flag("request-rx-copy"):
            raise FrontendError("the front end wants pages flipped, which nobody does any more (request-rx-copy)")
        if not frontend.flag("feature-rx-notify"):
            raise FrontendError("the front end does not say when it has room to receive (feature-rx-notify)")
        queues = frontend.number("multi-queue-num-queues", 1)
        if not 1 <= queues <= self._max_queues:
            raise FrontendError(f"multi-queue-num-queues {queues} is not 1 to {self._max_queues}")
        gathers = frontend.flag("feature-sg")
        kinds = [which for key, which in _GSO_KEYS.items() if gathers and self._network.offloads and frontend.flag(key)]
        options = Options(
            gathers, frozenset(kind for kind, _ in kinds), self._net.mtu, frontend.flag("request-multicast-control")
        )
        offload = sum(flag for _, flag in kinds)
        if not frontend.flag("feature-no-csum-offload"):
            offload |= TUN_F_CSUM
        wires = self._network.wires(queues, offload if offload & TUN_F_CSUM else 0)
        several = queues > 1
        for number, wire in enumerate(wires):
            self._open(frontend, f"queue-{number}/" if several else "", number, wire, options, failed)
        return {}

    def _open(
        self, frontend: Frontend, folder: str, number: int, wire: Wire, options: Options, failed: Callable[[str], None]
    ) -> None:
        refs = frontend.number(f"{folder}tx-ring-ref"), frontend.number(f"{folder}rx-ring-ref")
        try:
            queue = NetQueue(f"vif{self.handle}-{number}", wire, frontend.pages, *refs, options, failed)
        except XenError:
            raise FrontendError(f"{folder}tx-ring-ref or rx-ring-ref does not name a page granted to domain 0") from None
        self._queues.append(queue)
        bound: list[Bound] = []
        try:
            if frontend.text(f"{folder}event-channel-tx"):
                bound.append(frontend.bind(frontend.number(f"{folder}event-channel-tx"), queue.tx_bell))
                bound.append(frontend.bind(frontend.number(f"{folder}event-channel-rx"), queue.rx_bell))
            else:
                bound.append(frontend.bind(frontend.number(f"{folder}event-channel"), queue.both_bell))
        except FrontendError:
            for channel in bound:
                channel.close()
            raise
        queue.start(bound[0], bound[-1])

    def disconnect(self, done: Callable[[], None]) -> None:
        """Stop every queue."""

        def stopped() -> None:
            self._totals.end(queues)
            self._network.unplug()
            done()

        queues, self._queues = self._queues, []
        stop_all(queues, stopped)

    def counters(self) -> dict[str, int]:
        """Packets and bytes, each way."""
        return self._totals.add_up(list(self._queues))

    def release(self) -> None:
        """Let the wires go."""
        self._network.close()
