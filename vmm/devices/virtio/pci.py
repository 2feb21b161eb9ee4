"""A virtio device as a PCI function, the modern transport alone.

Source: Virtual I/O Device Specification 1.1, 4.1.
"""

import struct
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from vmm.devices.bus.pci.function import Bar, Function, PciIdentity
from vmm.devices.bus.pci.msix import Line, MsiX
from vmm.devices.virtio.ring import MAX_ENTRIES, Memory, Place, QueueBroken, VirtQueue
from vmm.host import log
from vmm.host.eventloop import Doorbell

VENDOR, FIRST_DEVICE = 0x1AF4, 0x1040
VERSION_1, INDIRECT_DESC, EVENT_IDX = 1 << 32, 1 << 28, 1 << 29
_TRANSPORT_FEATURES = VERSION_1 | INDIRECT_DESC | EVENT_IDX
_DRIVER_OK, _FEATURES_OK, _NEEDS_RESET = 4, 8, 64
_NO_VECTOR = 0xFFFF

_BAR_BYTES = 0x4000
_COMMON, _ISR, _DEVICE, _NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000
_NOTIFY_STEP = 4
_REGISTERS_BAR, _MSIX_BAR = 0, 1
_CAP_COMMON, _CAP_NOTIFY, _CAP_ISR, _CAP_DEVICE, _CAP_PCI = 1, 2, 3, 4, 5
_VENDOR_CAPABILITY = 0x09

_COMMON_FIELDS = {
    0: ("device_feature_select", 4), 4: ("device_feature", 4), 8: ("driver_feature_select", 4), 12: ("driver_feature", 4),
    16: ("msix_config", 2), 18: ("num_queues", 2), 20: ("device_status", 1), 21: ("config_generation", 1),
    22: ("queue_select", 2), 24: ("queue_size", 2), 26: ("queue_msix_vector", 2), 28: ("queue_enable", 2),
    30: ("queue_notify_off", 2), 32: ("queue_desc_low", 4), 36: ("queue_desc_high", 4), 40: ("queue_driver_low", 4),
    44: ("queue_driver_high", 4), 48: ("queue_device_low", 4), 52: ("queue_device_high", 4),
}  # fmt: skip
"""struct virtio_pci_common_cfg: offset, name, bytes."""


class Server(Protocol):
    """What serves one queue, in a thread of its own."""

    bell: Doorbell

    def start(self) -> None:
        """Begin to serve."""
        ...

    def stop(self, done: Callable[[], None]) -> None:
        """Finish what was taken, and then call `done`, in any thread."""
        ...


Interrupt = Callable[[], None]


class VirtioDevice(Protocol):
    """A kind of device; its methods are called by one vCPU at a time."""

    number: int
    """As the specification numbers device types."""
    pci_class: int
    features: int
    queues: int
    config: bytes

    def open(self, features: int, queues: Sequence[tuple[VirtQueue, Interrupt]]) -> Sequence[Server]:
        """The servers of the queues that the driver has set up; one may be behind several.  OSError."""
        ...

    def closed(self) -> None:
        """All of them have ended."""
        ...

    def release(self) -> None:
        """The domain is gone."""
        ...


class Wiring(NamedTuple):
    """What the transport needs of its machine."""

    memory: Memory
    memory_fault: type[Exception]
    new_line: Callable[[], Line]
    notify_by: Callable[[int, int, bool], None]
    """Whether writes of two bytes to an address signal an eventfd: address, descriptor, on or off."""


class QueueRecord(NamedTuple):
    """A queue as data: as the driver has set it up, and where it is while it is served."""

    size: int
    vector: int
    enabled: int
    addresses: tuple[int, ...]
    indices: tuple[int, int, int] | None


class VirtioRecord(NamedTuple):
    """A function as data.  Its queues' requests are all answered."""

    config: bytes
    values: tuple[tuple[str, int], ...]
    driver_features: int
    queues: tuple[QueueRecord, ...]
    messages: tuple[bytes, int]


class _Queue:
    def __init__(self) -> None:
        self.size = MAX_ENTRIES
        self.vector = _NO_VECTOR
        self.enabled = 0
        self.addresses = [0, 0, 0]
        self.ring: VirtQueue | None = None


class VirtioPci(Function):
    """`_lock` guards the registers; the queues' servers have threads of their own."""

    def __init__(self, device: VirtioDevice, wiring: Wiring) -> None:
        self._msix = MsiX([wiring.new_line() for _ in range(device.queues + 1)])
        bars = {_REGISTERS_BAR: Bar(_BAR_BYTES, self), _MSIX_BAR: self._msix.bar()}
        number = FIRST_DEVICE + device.number
        super().__init__(PciIdentity(VENDOR, number, device.pci_class, 1, (VENDOR, number)), bars)
        self._device = device
        self._wiring = wiring
        self._lock = threading.RLock()
        self._values = {name: 0 for name, _ in _COMMON_FIELDS.values()}
        self._driver_features = 0
        self._queues: list[_Queue] = []
        self._servers: Sequence[Server] = ()
        self._notified: list[tuple[int, int]] = []
        self._bar_at: int | None = None
        self._ending: threading.Event | None = None
        """Set once the servers of before a reset have ended; the device does nothing else until then."""
        self._forget()
        for kind, offset, size, more in (
            (_CAP_COMMON, _COMMON, 56, b""),
            (_CAP_ISR, _ISR, 1, b""),
            (_CAP_DEVICE, _DEVICE, len(device.config), b""),
            (_CAP_NOTIFY, _NOTIFY, _NOTIFY_STEP * device.queues, struct.pack("<I", _NOTIFY_STEP)),
        ):
            self.add_capability(_VENDOR_CAPABILITY, _capability(kind, offset, size, more))
        self._window_at = self.add_capability(_VENDOR_CAPABILITY, _capability(_CAP_PCI, 0, 0, bytes(4)))
        self.allow(self._window_at + 4, b"\xff")
        self.allow(self._window_at + 8, b"\xff" * 8)
        self._msix.describe(self, _MSIX_BAR)

    # ------------------------------------------------------------------- configuration space's window

    def _window(self, offset: int, size_bytes: int) -> int | None:
        """Where in the registers an access to the window of the PCI configuration capability goes."""
        at = self._window_at
        if offset != at + 16:
            return None
        bar, start, length = self.get(at + 4, 1), self.get(at + 8, 4), self.get(at + 12, 4)
        if bar != _REGISTERS_BAR or length != size_bytes or start + size_bytes > _BAR_BYTES:
            return None
        return start

    def read_config(self, offset: int, size_bytes: int) -> int:
        """Configuration space, with the window to the registers in it."""
        start = self._window(offset, size_bytes)
        return super().read_config(offset, size_bytes) if start is None else self.read_mmio(start, size_bytes)

    def write_config(self, offset: int, size_bytes: int, value: int) -> None:
        """A write to configuration space, or by the window in it to a register."""
        start = self._window(offset, size_bytes)
        if start is None:
            super().write_config(offset, size_bytes, value)
        else:
            self.write_mmio(start, size_bytes, value)

    def moved(self, places: dict[int, int]) -> None:
        """The registers are elsewhere: the doorbells move along."""
        with self._lock:
            self._unwire()
            self._bar_at = places.get(_REGISTERS_BAR)
            self._wire()

    def _wire(self) -> None:
        if self._bar_at is not None:
            for number, server in enumerate(self._servers):
                address = self._bar_at + _NOTIFY + _NOTIFY_STEP * number
                self._wiring.notify_by(address, server.bell.fd, True)
                self._notified.append((address, server.bell.fd))

    def _unwire(self) -> None:
        while self._notified:
            self._wiring.notify_by(*self._notified.pop(), False)

    # ------------------------------------------------------------------------------------ registers

    def read_mmio(self, offset: int, size_bytes: int) -> int:
        """A register of the common or the device's own configuration."""
        with self._lock:
            if offset >= _DEVICE:
                config = self._device.config[offset - _DEVICE : offset - _DEVICE + size_bytes] if offset < _NOTIFY else b""
                return int.from_bytes(config, "little")
            if offset >= _ISR:
                return 0  # there are no interrupts but messages
            name, size = _COMMON_FIELDS.get(offset, ("", 0))
            return self._register(name) if size == size_bytes else 0

    def _register(self, name: str) -> int:
        queue = self._queue
        if name == "device_feature":
            return (self._device.features | _TRANSPORT_FEATURES) >> 32 * min(self._values["device_feature_select"], 2) & (
                (1 << 32) - 1
            )
        if name == "driver_feature":
            return self._driver_features >> 32 * min(self._values["driver_feature_select"], 2) & (1 << 32) - 1
        if name == "num_queues":
            return self._device.queues
        if name == "queue_notify_off":
            return self._values["queue_select"] if queue is not None else 0
        if not name.startswith("queue_") or name == "queue_select":
            return self._values[name]
        if queue is None:
            return 0
        if name in ("queue_size", "queue_enable"):
            return queue.size if name == "queue_size" else queue.enabled
        if name == "queue_msix_vector":
            return queue.vector
        which, half = _ADDRESSES[name]
        return queue.addresses[which] >> 32 * half & (1 << 32) - 1

    @property
    def _queue(self) -> _Queue | None:
        selected = self._values["queue_select"]
        return self._queues[selected] if selected < len(self._queues) else None

    def write_mmio(self, offset: int, size_bytes: int, value: int) -> None:
        """A register, or a doorbell that KVM has not taken."""
        with self._lock:
            if offset >= _NOTIFY:
                number = (offset - _NOTIFY) // _NOTIFY_STEP
                if number < len(self._servers):
                    self._servers[number].bell.ring()
                return
            name, size = _COMMON_FIELDS.get(offset, ("", 0))
            if size == size_bytes:
                self._set_register(name, value)

    def _set_register(self, name: str, value: int) -> None:
        queue = self._queue
        if name in ("device_feature_select", "driver_feature_select", "queue_select"):
            self._values[name] = value
        elif name == "driver_feature":
            shift = 32 * self._values["driver_feature_select"]
            if shift <= 32 and not self._values["device_status"] & _FEATURES_OK:
                self._driver_features = self._driver_features & ~(0xFFFF_FFFF << shift) | value << shift
        elif name == "device_status":
            self._set_status(value)
        elif name == "msix_config":
            self._values[name] = value if value <= self._device.queues else _NO_VECTOR
        elif queue is None or (queue.enabled and name != "queue_msix_vector"):
            pass
        elif name == "queue_size":
            if 0 < value <= MAX_ENTRIES and not value & (value - 1):
                queue.size = value
        elif name == "queue_msix_vector":
            queue.vector = value if value <= self._device.queues else _NO_VECTOR
        elif name == "queue_enable":
            queue.enabled = value & 1
        elif name in _ADDRESSES:
            which, half = _ADDRESSES[name]
            kept = queue.addresses[which] & 0xFFFF_FFFF << 32 * (1 - half)
            queue.addresses[which] = kept | value << 32 * half

    # --------------------------------------------------------------------------- the driver's progress

    def _set_status(self, value: int) -> None:
        if self._ending is not None:
            return  # the reset is not over, and the driver has not seen it be
        before = self._values["device_status"]
        if value == 0:
            self._reset()
            return
        if value & _FEATURES_OK and not before & _FEATURES_OK:
            offered = self._device.features | _TRANSPORT_FEATURES
            if self._driver_features & ~offered or not self._driver_features & VERSION_1:
                value &= ~_FEATURES_OK
        self._values["device_status"] = value & 0xFF
        if value & _DRIVER_OK and not before & _DRIVER_OK:
            self._start()

    def record(self) -> VirtioRecord:
        """The function as data; its vCPUs are paused, and its queues' requests answered."""
        with self._lock:
            queues = tuple(
                QueueRecord(
                    queue.size, queue.vector, queue.enabled, tuple(queue.addresses),
                    None if queue.ring is None else queue.ring.record(),
                )
                for queue in self._queues
            )  # fmt: skip
            return VirtioRecord(
                self.config_record(), tuple(self._values.items()), self._driver_features, queues, self._msix.record()
            )

    def restore(self, record: VirtioRecord) -> None:
        """Go on as another did, whose memory is there; this one is new.  Its servers go on where the other's were."""
        with self._lock:
            self.restore_config(record.config)
            self._values.update(record.values)
            self._driver_features = record.driver_features
            for queue, row in zip(self._queues, record.queues, strict=True):
                queue.size, queue.vector, queue.enabled = row.size, row.vector, row.enabled
                queue.addresses = list(row.addresses)
            self._msix.restore(record.messages)
            if self._values["device_status"] & _DRIVER_OK:
                self._start([row.indices for row in record.queues])

    def _start(self, indices: "Sequence[tuple[int, int, int] | None] | None" = None) -> None:
        if not self._values["device_status"] & _FEATURES_OK:
            return
        event_index = bool(self._driver_features & EVENT_IDX)
        try:
            queues: list[tuple[VirtQueue, Interrupt]] = []
            for queue in self._queues:
                if not queue.enabled:
                    break
                ring = VirtQueue(
                    self._wiring.memory, Place(queue.size, *queue.addresses), self._wiring.memory_fault,
                    event_index=event_index,
                )  # fmt: skip
                place = None if indices is None else indices[len(queues)]
                if place is not None:
                    ring.restore(place)
                queue.ring = ring
                queues.append((ring, self._interrupt_for(queue)))
            self._servers = self._device.open(self._driver_features, queues)
        except (QueueBroken, OSError) as error:
            self.failed(str(error))
            return
        for server in dict.fromkeys(self._servers):
            server.start()
        self._wire()

    def _interrupt_for(self, queue: _Queue) -> Interrupt:
        def interrupt() -> None:
            if queue.vector != _NO_VECTOR:
                self._msix.send(queue.vector)

        return interrupt

    def failed(self, why: str) -> None:
        """The device cannot go on until the driver has reset it.  From any thread."""
        log.get(__name__).warning("a virtio device has failed", device=self._device.number, reason=why)
        with self._lock:
            self._values["device_status"] |= _NEEDS_RESET
            vector = self._values["msix_config"]
        if vector != _NO_VECTOR:
            self._msix.send(vector)

    def _reset(self) -> None:
        """End the servers; the status reads 0 once they have ended."""
        servers, self._servers = list(dict.fromkeys(self._servers)), ()
        self._unwire()
        if not servers:
            self._forget()
            return
        from vmm.devices.stopping import stop_all

        ended = self._ending = threading.Event()

        def stopped() -> None:
            self._device.closed()
            with self._lock:
                self._forget()
                self._ending = None
            ended.set()

        stop_all(servers, stopped)

    def _forget(self) -> None:
        for name in self._values:
            self._values[name] = 0
        self._values["msix_config"] = _NO_VECTOR
        self._driver_features = 0
        self._queues = [_Queue() for _ in range(self._device.queues)]

    @property
    def in_use(self) -> bool:
        """Whether a driver has it."""
        with self._lock:
            return bool(self._values["device_status"])

    def close(self) -> None:
        """The function is unplugged: the servers end, and the device lets its file or network go."""
        ended = threading.Event()
        with self._lock:
            servers, self._servers = list(dict.fromkeys(self._servers)), ()
            self._unwire()
            resetting = self._ending
        from vmm.devices.stopping import stop_all

        if resetting is not None:
            resetting.wait()
        stop_all(servers, ended.set)
        ended.wait()
        self._device.release()
        self._msix.close()


_ADDRESSES = {
    f"queue_{kind}_{part}": (which, half)
    for which, kind in enumerate(("desc", "driver", "device"))
    for half, part in enumerate(("low", "high"))
}


def _capability(kind: int, offset: int, size_bytes: int, more: bytes) -> bytes:
    """struct virtio_pci_cap behind its id and link."""
    length = 16 + len(more)
    return struct.pack("<BBBBxxII", length, kind, _REGISTERS_BAR, 0, offset, size_bytes) + more
