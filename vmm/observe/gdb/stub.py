"""What GDB asks and how it is answered.  Knows no socket: packets come in, answers go out.

Source: Debugging with GDB, appendix E.  All-stop; a thread a vCPU, numbered from 1.
"""

import signal
from collections.abc import Callable

from vmm.observe.gdb.packets import INTERRUPT, MAX_PACKET_BYTES
from vmm.observe.gdb.registers import Layout, read, write
from vmm.observe.gdb.target import KINDS, CannotReach, Hardware, Stop, Target
from vmm.xenabi.constants import ShutdownReason

_TRAP, _INT, _KILL = 5, int(signal.SIGINT), int(signal.SIGKILL)
_ENDS = {ShutdownReason.poweroff: "W00", ShutdownReason.reboot: "W00"}
_FEATURES = f"PacketSize={MAX_PACKET_BYTES:x};qXfer:features:read+;swbreak+;hwbreak+;vContSupported+;QStartNoAckMode+"
_LENGTHS = (1, 2, 4, 8)


class Detached(Exception):
    """GDB lets the guest go."""


class Killed(Exception):
    """GDB ends the guest."""


class BadRequest(Exception):
    """A packet that cannot be meant; GDB gets an error."""


class Stub:
    """One debugger's session.  `running` while the guest runs and GDB waits."""

    def __init__(self, target: Target, bits: int = 64) -> None:
        """The guest's kernel has so many bits."""
        self._target = target
        self._layout = Layout(bits)
        self.running = False
        self._thread = 0
        self._last = f"T{_TRAP:02x}thread:1;"
        self._commands: dict[str, Callable[[str], str | None]] = {
            "?": lambda _: self._last,
            "g": self._read_all,
            "G": self._write_all,
            "p": self._read_one,
            "P": self._write_one,
            "m": self._read_memory,
            "M": self._write_memory,
            "H": self._choose_thread,
            "T": self._is_alive,
            "Z": lambda rest: self._breakpoint(rest, insert=True),
            "z": lambda rest: self._breakpoint(rest, insert=False),
            "q": self._query,
            "v": self._verbose,
            "c": lambda rest: self._resume(f"c:{self._thread + 1:x};c", rest),
            "s": lambda rest: self._resume(f"s:{self._thread + 1:x}", rest),
            "C": lambda rest: self._resume("c"),
            "S": lambda rest: self._resume(f"s:{self._thread + 1:x}"),
            "D": self._detach,
            "k": self._kill,
            "!": lambda _: "OK",
        }

    def handle(self, packet: bytes) -> str | None:
        """The answer to a packet; None where it comes later.  Detached, Killed."""
        if packet == INTERRUPT:
            return self._interrupted() if self.running else None
        if self.running:
            return None  # all-stop: nothing but an interrupt is due
        if packet.startswith(b"X"):
            return self._guarded(lambda _: self._write_binary(packet[1:]), "")
        text = packet.decode("ascii", "replace")
        command = self._commands.get(text[:1])
        return "" if command is None else self._guarded(command, text[1:])

    def _guarded(self, command: Callable[[str], str | None], rest: str) -> str | None:
        try:
            return command(rest)
        except CannotReach:
            return "E0e"  # EFAULT
        except (BadRequest, ValueError, IndexError):
            return "E16"  # EINVAL

    # ------------------------------------------------------------------------------- stop and run

    def attach(self) -> None:
        """A debugger is there: the guest stops."""
        self._target.stop()
        self._target.stops.clear()

    def stopped(self, stop: Stop) -> str:
        """A vCPU has stopped for the debugger: the others do, too."""
        self._target.stop()
        self._target.stops.clear()
        self.running = False
        self._thread = stop.vcpu
        why = {"swbreak": "swbreak:;", "hwbreak": "hwbreak:;", "watch": f"watch:{stop.address:x};"}.get(stop.why, "")
        self._last = f"T{_TRAP:02x}thread:{stop.vcpu + 1:x};{why}"
        return self._last

    def _interrupted(self) -> str:
        self._target.stop()
        self._target.stops.clear()
        self.running = False
        self._last = f"T{_INT:02x}thread:{self._thread + 1:x};"
        return self._last

    def ended(self) -> str | None:
        """The packet that says how the guest ended; None while it has not."""
        outcome = self._target.domain.outcome
        return None if outcome is None else _ENDS.get(outcome.reason, f"X{int(signal.SIGABRT):02x}")

    def _resume(self, actions: str, address: str = "") -> str | None:
        """vCont's actions: for each vCPU the first one that names it, or names nobody."""
        if address:
            vcpu = self._target.vcpus[self._thread]
            vcpu.kvm.regs.rip = int(address, 16)
            vcpu.kvm.regs_changed()
        steps: set[int] = set()
        runs: set[int] = set()
        for index in range(len(self._target.vcpus)):
            for action in actions.split(";"):
                verb, _, thread = action.partition(":")
                if thread and thread != "-1" and int(thread, 16) != index + 1:
                    continue
                if verb[:1] not in ("c", "C", "s", "S"):
                    raise BadRequest
                (steps if verb[:1] in ("s", "S") else runs).add(index)
                break
        if not steps and not runs:
            raise BadRequest
        self.running = True
        self._target.run(steps, runs)
        return None

    def _detach(self, rest: str) -> str:
        raise Detached

    def _kill(self, rest: str) -> str:
        raise Killed

    # ---------------------------------------------------------------------------------- registers

    def _read_all(self, rest: str) -> str:
        kvm = self._target.vcpus[self._thread].kvm
        return "".join(read(register, kvm.regs, kvm.sregs) for register in self._layout.registers)

    def _write_all(self, rest: str) -> str:
        kvm = self._target.vcpus[self._thread].kvm
        position = 0
        for register in self._layout.registers:
            digits = rest[position : position + register.bits // 4]
            position += register.bits // 4
            if digits and "x" not in digits:
                write(register, kvm.regs, digits)
        kvm.regs_changed()
        return "OK"

    def _read_one(self, rest: str) -> str:
        kvm = self._target.vcpus[self._thread].kvm
        return read(self._layout.registers[int(rest, 16)], kvm.regs, kvm.sregs)

    def _write_one(self, rest: str) -> str:
        number, _, digits = rest.partition("=")
        kvm = self._target.vcpus[self._thread].kvm
        if not write(self._layout.registers[int(number, 16)], kvm.regs, digits):
            raise BadRequest
        kvm.regs_changed()
        return "OK"

    # ------------------------------------------------------------------------------------- memory

    def _read_memory(self, rest: str) -> str:
        address, size = _two_numbers(rest)
        return self._target.read(self._thread, address, min(size, MAX_PACKET_BYTES // 2 - 4)).hex()

    def _write_memory(self, rest: str) -> str:
        where, _, digits = rest.partition(":")
        address, size = _two_numbers(where)
        data = bytes.fromhex(digits)
        if len(data) != size:
            raise BadRequest
        self._target.write(self._thread, address, data)
        return "OK"

    def _write_binary(self, rest: bytes) -> str:
        where, _, data = rest.partition(b":")
        address, size = _two_numbers(where.decode("ascii", "replace"))
        if len(data) != size:
            raise BadRequest
        if data:
            self._target.write(self._thread, address, data)
        return "OK"

    def _breakpoint(self, rest: str, *, insert: bool) -> str:
        kind, address_text, length_text = rest.split(";")[0].split(",")
        address, length, number = int(address_text, 16), int(length_text, 16), int(kind, 16)
        if number == 0:
            if insert:
                self._target.insert_software(self._thread, address)
            else:
                self._target.remove_software(address, self._thread)
            return "OK"
        if number not in KINDS:
            return ""
        if number == 1:
            length = 1
        if length not in _LENGTHS or address % length or address >> 64:
            raise BadRequest
        point = Hardware(number, address, length)
        if not insert:
            self._target.remove_hardware(point)
        elif not self._target.insert_hardware(self._thread, point):
            return "E1c"  # ENOSPC
        return "OK"

    # ---------------------------------------------------------------------------------- questions

    def _choose_thread(self, rest: str) -> str:
        number = int(rest[1:], 16)
        if rest[0] == "g" or number > 0:
            self._thread = self._index(number) if number > 0 else self._thread
        return "OK"

    def _index(self, number: int) -> int:
        if not 1 <= number <= len(self._target.vcpus):
            raise BadRequest
        return number - 1

    def _is_alive(self, rest: str) -> str:
        self._index(int(rest, 16))
        return "OK"

    def _query(self, rest: str) -> str:
        name, _, arguments = rest.partition(":")
        if name == "Supported":
            return _FEATURES
        if name == "Attached":
            return "1"
        if name == "C":
            return f"QC{self._thread + 1:x}"
        if name == "fThreadInfo":
            return "m" + ",".join(f"{index + 1:x}" for index in range(len(self._target.vcpus)))
        if name == "sThreadInfo":
            return "l"
        if name.startswith("ThreadExtraInfo,"):
            vcpu = self._target.vcpus[self._index(int(name.partition(",")[2], 16))]
            return f"vCPU {vcpu.id}, {'online' if vcpu.online else 'offline'}".encode().hex()
        if name == "Xfer" and arguments.startswith("features:read:target.xml:"):
            start, size = _two_numbers(arguments.rpartition(":")[2])
            xml = self._layout.xml()
            part = xml[start : start + min(size, MAX_PACKET_BYTES // 2)]
            return ("m" if start + len(part) < len(xml) else "l") + part.decode()
        if name == "Symbol":
            return "OK"
        return ""

    def _verbose(self, rest: str) -> str | None:
        if rest == "Cont?":
            return "vCont;c;C;s;S"
        if rest.startswith("Cont;"):
            return self._resume(rest.removeprefix("Cont;"))
        if rest.startswith("Kill"):
            raise Killed
        return ""


def _two_numbers(text: str) -> tuple[int, int]:
    first, second = text.split(",")
    return int(first, 16), int(second, 16)
