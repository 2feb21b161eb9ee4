"""A channel: a further PV console of the guest's (hvc1 and so on), for a conversation with something in it.

What libxl calls a channel; its ring and its end in xenstore are a console's.  Source: xen/docs/misc/channel.txt.
"""

from collections.abc import Callable

from vmm.devices.bus.xenbus import Bound, Frontend, FrontendError
from vmm.devices.console.pv import Console
from vmm.host.chardev import Sink
from vmm.host.eventloop import EventLoop
from vmm.xenabi.values import XenError


class ChannelBackend:
    """One channel.  Its methods belong to xenstore's thread, but for `write`; its bytes are moved by another."""

    kind = "console"
    fixed = frozenset[str]()

    def __init__(self, name: str, handle: int, sink: Sink) -> None:
        """`handle` is 1 or more: 0 is the guest's own console.  `sink` gets what the guest writes."""
        self.handle = handle
        self._name = name
        self._sink = sink
        self._parts: tuple[EventLoop, Console, Frontend, int, Bound] | None = None

    def toolstack_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"protocol": "vt100", "name": self._name, "connection": "pyvmm"}

    def frontend_keys(self) -> dict[str, str]:
        """As libxl writes them."""
        return {"protocol": "vt100", "limit": "1048576", "type": "xenconsoled", "output": "pty", "name": self._name}

    def features(self) -> dict[str, str]:
        """There are none."""
        return {}

    def connect(self, frontend: Frontend, failed: Callable[[str], None]) -> dict[str, str]:
        """Serve its ring.  FrontendError."""
        ref = frontend.number("ring-ref")
        try:
            page, _ = frontend.pages.map_shared(ref)
        except XenError:
            raise FrontendError("ring-ref does not name a page granted to domain 0") from None
        loop = EventLoop(f"channel-{self._name}")
        bound: list[Bound] = []
        console = Console(page, self._sink, lambda: bound[0].notify())
        try:
            bound.append(frontend.bind(frontend.number("port"), loop.doorbell(console.on_event)))
        except FrontendError:
            loop.stop()
            frontend.pages.unmap(ref, write=True)
            raise
        self._parts = loop, console, frontend, ref, bound[0]
        loop.start()
        loop.post(console.on_event)
        return {}

    def write(self, data: bytes, taken: Callable[[], None]) -> bool:
        """Hand bytes to the guest; `taken` is called, in another thread, when it has them all.  False: nobody is there."""
        parts = self._parts
        if parts is None:
            return False
        loop, console, *_ = parts
        loop.post(lambda: console.take_input(data, taken))
        return True

    def disconnect(self, done: Callable[[], None]) -> None:
        """Let the ring go."""
        parts, self._parts = self._parts, None
        if parts is None:
            done()
            return
        loop, console, frontend, ref, bound = parts

        def end() -> None:
            console.on_event()
            bound.close()
            frontend.pages.unmap(ref, write=True)
            done()

        loop.end(end)

    def release(self) -> None:
        """Nothing is left."""

    def counters(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}
