"""A machine's interrupt numbers: which GSI leads to which message."""

import threading

from vmm.kvm import MsiRoute, VmFd


class Gsis:
    """The routing table of one machine.  `_lock` guards it; its methods may be called from any thread.

    The first numbers are an IOAPIC's lines, where there is one; the others are handed out.
    """

    def __init__(self, vm: VmFd, lines: int) -> None:
        self._vm = vm
        self._lock = threading.Lock()
        self._routes: dict[int, MsiRoute] = {}
        self._free: list[int] = []
        self._next = lines

    def allocate(self) -> int:
        """A number that nobody has."""
        with self._lock:
            if self._free:
                return self._free.pop()
            self._next += 1
            return self._next - 1

    def release(self, gsi: int) -> None:
        """Nobody needs the number any more."""
        self.route(gsi, None)
        with self._lock:
            self._free.append(gsi)

    def route(self, gsi: int, message: MsiRoute | None) -> None:
        """Have a number lead to a message, or nowhere."""
        with self._lock:
            if self._routes.get(gsi) == message:
                return
            if message is None:
                del self._routes[gsi]
            else:
                self._routes[gsi] = message
            self._vm.set_msi_routes(self._routes)

    def pulse(self, gsi: int) -> None:
        """Send the message once."""
        self._vm.raise_gsi(gsi)
