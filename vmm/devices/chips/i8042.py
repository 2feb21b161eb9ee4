"""A PS/2 controller with a keyboard and a mouse that nobody touches, and the machine's reset line.

As much as a driver asks while it looks for its devices.  Source: IBM PS/2 Technical Reference, keyboard controller.
"""

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from vmm.devices.bus.ports import PortRange

DATA_PORT, COMMAND_PORT = 0x60, 0x64
KEYBOARD_LINE, MOUSE_LINE = 1, 12
MAX_WAITING = 16

_OUTPUT_FULL, _SYSTEM, _COMMAND_LAST, _UNLOCKED, _FROM_MOUSE = 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
_KEYBOARD_INTERRUPT, _MOUSE_INTERRUPT, _SYSTEM_FLAG = 1, 1 << 1, 1 << 2
_KEYBOARD_OFF, _MOUSE_OFF, _TRANSLATED = 1 << 4, 1 << 5, 1 << 6
_ACK = 0xFA
_RESET_LINE_LOW = 0xFE
_TAKES_DATA = frozenset({0x60, 0xD1, 0xD2, 0xD3, 0xD4})

_KEYBOARD = {0xFF: b"\xfa\xaa", 0xF2: b"\xfa\xab\x83"}
_MOUSE = {0xFF: b"\xfa\xaa\x00", 0xF2: b"\xfa\x00", 0xE9: b"\xfa\x00\x02\x64", 0xEB: b"\xfa\x00\x00\x00"}
"""What the devices answer to a command, where that is more than an acknowledgement."""


class I8042Record(NamedTuple):
    """The controller as data: what waits to be read are bytes, and whether each came from the mouse."""

    control: int
    command: int
    last_was_command: bool
    waiting: tuple[tuple[int, bool], ...]


class I8042:
    """`_lock` guards its registers and what waits to be read."""

    ranges = (PortRange(DATA_PORT, DATA_PORT), PortRange(COMMAND_PORT, COMMAND_PORT))

    def __init__(self, interrupt: Callable[[int], None], reset: Callable[[], None]) -> None:
        self._interrupt = interrupt
        self._reset = reset
        self._lock = threading.Lock()
        self._control = _SYSTEM_FLAG | _KEYBOARD_OFF | _MOUSE_OFF | _TRANSLATED
        self._command = 0
        self._last_was_command = False
        self._waiting: deque[tuple[int, bool]] = deque()

    def record(self) -> I8042Record:
        """The controller as data."""
        with self._lock:
            return I8042Record(self._control, self._command, self._last_was_command, tuple(self._waiting))

    def restore(self, record: I8042Record) -> None:
        """Go on as another did."""
        with self._lock:
            self._control, self._command, self._last_was_command = record[:3]
            self._waiting = deque(record.waiting)

    def read_port(self, port: int, size_bytes: int) -> int:
        """Status, or the next byte that waits."""
        with self._lock:
            if port == COMMAND_PORT:
                status = _SYSTEM | _UNLOCKED | (_COMMAND_LAST if self._last_was_command else 0)
                if self._waiting:
                    status |= _OUTPUT_FULL | (_FROM_MOUSE if self._waiting[0][1] else 0)
                return status
            if not self._waiting:
                return 0
            value, _ = self._waiting.popleft()
            line = self._line_to_raise()
        self._raise(line)
        return value

    def write_port(self, port: int, size_bytes: int, value: int) -> None:
        """A command, or its data."""
        value &= 0xFF
        if port == COMMAND_PORT and value == _RESET_LINE_LOW:
            self._reset()
            return
        with self._lock:
            empty = not self._waiting
            self._last_was_command = port == COMMAND_PORT
            if port == COMMAND_PORT:
                self._begin(value)
            else:
                command, self._command = self._command, 0
                self._data(command, value)
            line = self._line_to_raise() if empty else None
        self._raise(line)

    def _answer(self, data: bytes, *, mouse: bool = False) -> None:
        for value in data:
            if len(self._waiting) < MAX_WAITING:
                self._waiting.append((value, mouse))

    def _begin(self, command: int) -> None:
        self._command = command if command in _TAKES_DATA else 0
        if command == 0x20:
            self._answer(bytes([self._control]))
        elif command == 0xAA:  # self test
            self._answer(b"\x55")
        elif command in (0xA9, 0xAB):  # tests of the two lines
            self._answer(b"\x00")
        elif command in (0xA7, 0xAD):
            self._control |= _MOUSE_OFF if command == 0xA7 else _KEYBOARD_OFF
        elif command in (0xA8, 0xAE):
            self._control &= ~(_MOUSE_OFF if command == 0xA8 else _KEYBOARD_OFF)

    def _data(self, command: int, value: int) -> None:
        if command == 0x60:
            self._control = value
        elif command in (0xD2, 0xD3):  # as if the device had sent it
            self._answer(bytes([value]), mouse=command == 0xD3)
        elif command == 0xD4:
            self._answer(_MOUSE.get(value, bytes([_ACK])), mouse=True)
        elif command != 0xD1:
            self._answer(_KEYBOARD.get(value, bytes([_ACK])))

    def _line_to_raise(self) -> int | None:
        if not self._waiting:
            return None
        from_mouse = self._waiting[0][1]
        wanted = _MOUSE_INTERRUPT if from_mouse else _KEYBOARD_INTERRUPT
        return (MOUSE_LINE if from_mouse else KEYBOARD_LINE) if self._control & wanted else None

    def _raise(self, line: int | None) -> None:
        if line is not None:
            self._interrupt(line)
