"""What one more costs: vCPUs, bound ports, grants in use, idle disks, guests in one process.  The curve, on any KVM."""

import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmarks.guests import assemble, until_said
from scripts.benchmarks.table import Row
from tests.guests import Transcript, running
from vmm.boot.image import load_image
from vmm.config.domain import DomainConfig
from vmm.devices.block.spec import device_name, parse_disk
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.machine.memory.guest import GuestMemory
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Domid, Gfn, GrantRef

VCPUS, PORTS, GRANTS, DISKS, GUESTS = (1, 4, 16, 64), (8, 256, 4000), (1, 512, 8192), (0, 16), (1, 4, 16)
ROUNDS = 2000
IDLE_S = 2
GRANT_ENTRY = struct.Struct("<HHI")


def measure(runs: int) -> list[Row]:
    """Interleaved where one machine can hold all contestants, else one after the other."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        image = assemble("sleeper", Path(folder))
        for count in VCPUS:
            rows.append(
                Row(f"make and start a domain of {count} vCPUs", [_make_ms(image, count) for _ in range(runs)], "ms")
            )
        with _asleep(image) as domain:
            for count in PORTS:
                rows.append(Row(f"deliver an event, {count} ports bound", _deliver_us(domain, count, runs), "us"))
            domain.grants.grow(domain.grants.max_frames)
            for count in GRANTS:
                rows.append(Row(f"map and unmap a grant, {count} in use", _grant_us(domain, count, runs), "us"))
        for count in DISKS:
            with _asleep(image) as domain:
                _attach(domain, count, Path(folder))
                rows.append(Row(f"asleep with {count} idle disks", [_idle_percent() for _ in range(runs)], "%"))
        for count in GUESTS:
            percents, mib = _guests(image, count, runs)
            rows.append(Row(f"{count} guests asleep, each", percents, "%"))
            rows.append(Row(f"{count} guests, resident memory of each", mib, "MiB"))
    return rows


def _make_ms(image: Path, vcpus: int) -> float:
    start = time.perf_counter()
    with running(DomainConfig(image, vcpus=vcpus, transport=Transport.PAGE)):
        return (time.perf_counter() - start) * 1e3


@contextmanager
def _asleep(image: Path) -> Iterator[Domain]:
    with running(DomainConfig(image, transport=Transport.PAGE)) as (domain, transcript):
        until_said("asleep", domain, transcript)
        yield domain


def _us_each(once: Callable[[], object], runs: int) -> list[float]:
    samples = []
    for _ in range(runs):
        start = time.perf_counter()
        for _ in range(ROUNDS):
            once()
        samples.append((time.perf_counter() - start) / ROUNDS * 1e6)
    return samples


def _deliver_us(domain: Domain, count: int, runs: int) -> list[float]:
    events = domain.events
    port = events.bind_ipi(0)
    while port < count:
        port = events.alloc_unbound(Domid(0))
    last = events.bind_ipi(0)
    return _us_each(lambda: events.deliver(last), runs)


def _grant_us(domain: Domain, count: int, runs: int) -> list[float]:
    memory: GuestMemory = domain.memory
    table, frame = memory.xen_page(1, domain.grants.max_frames), Gfn(0x100)
    for ref in range(8, 8 + count):
        table.write(ref * GRANT_ENTRY.size, GRANT_ENTRY.pack(1, 0, frame))
    refs = [GrantRef(ref) for ref in range(8, 8 + count)]
    for ref in refs[:-1]:
        domain.grants.acquire(ref, Domid(0), write=True)

    def once() -> None:
        domain.grants.acquire(refs[-1], Domid(0), write=True)
        domain.grants.release(refs[-1], write=True)

    samples = _us_each(once, runs)
    for ref in refs[:-1]:
        domain.grants.release(ref, write=True)
    return samples


def _attach(domain: Domain, count: int, folder: Path) -> None:
    assert domain.devices is not None
    for index in range(count):
        path = folder / f"disk{index}"
        path.write_bytes(bytes(1 << 20))
        domain.devices.attach(parse_disk(str(path), device_name(index)))


def _idle_percent() -> float:
    start, used = time.monotonic(), time.process_time()
    time.sleep(IDLE_S)
    return 100 * (time.process_time() - used) / (time.monotonic() - start)


def _resident_mib() -> float:
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) / 1024


def _guests(image: Path, count: int, runs: int) -> tuple[list[float], list[float]]:
    """CPU of each and memory of each, % and MiB; all in one process, as the domains of one hypervisor."""
    system = System()
    hypervisor = Hypervisor(system)
    try:
        before = _resident_mib()
        for index in range(count):
            transcript = Transcript()
            config = DomainConfig(image, transport=Transport.PAGE, name=f"guest{index}").checked()
            domain = build_domain(hypervisor, config, load_image(image), [], transcript)
            domain.unpause()
            until_said("asleep", domain, transcript)
        mib = (_resident_mib() - before) / count
        return [_idle_percent() / count for _ in range(runs)], [mib]
    finally:
        hypervisor.close()
        system.close()
