"""Domains that share memory: real pages, real slots, and what is left of them when one of the two goes."""

import errno
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guests import Transcript, share_pages
from vmm.boot.image import load_image
from vmm.config.domain import DomainConfig
from vmm.config.features import COMBINATIONS
from vmm.errors import PyvmmError, UsageError
from vmm.kvm import System
from vmm.machine.domain import Domain
from vmm.machine.hypervisor import Hypervisor
from vmm.toolstack.build import build as build_domain
from vmm.xenabi.constants import Hypercall
from vmm.xenabi.state import Call
from vmm.xenabi.structs import GnttabCopy, GnttabMapGrantRef, GnttabUnmapGrantRef
from vmm.xenabi.transport import Transport
from vmm.xenabi.values import Domid, Gfn, GrantRef, HypercallOutcome, XenError

Build = Callable[[str], Path]
PAGE_BYTES = 4096
SOURCE, PLACE = Gfn(0x2000), Gfn(0x90000)  # RAM of one, above the RAM of the other
ARGUMENT, ARGUMENT_GPA = 0x8000, 0x8000


class Two:
    """A dom0 and a guest beside it, made but not started; hypercalls are made for them by hand."""

    def __init__(
        self, system: System, image: Path, *, shareable: bool = True, transport: Transport = Transport.PAGE
    ) -> None:
        self.hypervisor, self.transcript = Hypervisor(system), Transcript()
        config = DomainConfig(image, memory_bytes=64 << 20, transport=transport)
        dom0 = config._replace(features=COMBINATIONS["pvh-dom0"], own_xenstore=True, name="dom0")
        self.configs = dom0, config
        self.dom0, self.guest = (
            build_domain(self.hypervisor, each.checked(), load_image(image), [], self.transcript, shareable=shareable)
            for each in (dom0, config)
        )

    def close(self) -> None:
        self.hypervisor.close()


@pytest.fixture
def two(system: System, build: Build) -> Iterator[Two]:
    made = Two(system, build("sleeper"))
    yield made
    made.close()


def hypercall(domain: Domain, number: Hypercall, *args: int) -> HypercallOutcome:
    call = Call(domain, domain.vcpus[0])
    call.number, call.args = number, (*args, 0, 0, 0, 0, 0, 0)[:6]
    return domain.hypercall(call)


def grant(domain: Domain, ref: int, gfn: int, to: int, flags: int = 1) -> None:
    entry = struct.pack("<HHI", flags, to, gfn)
    domain.memory.xen_page(1).write(8 * ref, entry)


def test_a_foreign_page_is_the_same_page_in_both(two: Two) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    theirs.page(SOURCE)[:5] = b"hello"
    mine.map_foreign(PLACE, theirs, SOURCE)
    assert bytes(mine.page(PLACE)[:5]) == b"hello"
    mine.page(PLACE)[:5] = b"world"
    assert bytes(theirs.page(SOURCE)[:5]) == b"world"
    assert mine.unmap_foreign(PLACE)
    assert not mine.has_page(PLACE)
    assert bytes(theirs.page(SOURCE)[:5]) == b"world"
    assert not mine.unmap_foreign(PLACE)


def test_a_read_only_page_shows_changes_and_keeps_none(two: Two) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    mine.map_foreign(PLACE, theirs, SOURCE, writable=False)
    theirs.page(SOURCE)[:3] = b"one"
    assert bytes(mine.page(PLACE)[:3]) == b"one"
    mine.page(PLACE)[:3] = b"two"  # no fault, whoever writes
    assert bytes(theirs.page(SOURCE)[:3]) == b"one"


def test_no_page_of_a_destroyed_domain_stays_mapped(two: Two) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    for number in range(64):
        theirs.page(Gfn(SOURCE + number))[:6] = b"secret"
        mine.map_foreign(Gfn(PLACE + number), theirs, Gfn(SOURCE + number))
    assert mine.shown_foreign == 64
    two.hypervisor.destroy(two.guest)
    assert mine.shown_foreign == 0
    assert not any(mine.has_page(Gfn(PLACE + number)) for number in range(64))
    assert not [
        line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:pyvmm-guest" in line and _is_lost(line)
    ]


def _is_lost(line: str) -> bool:
    """Whether a mapping is of a file that no descriptor of this process has: that of a domain that has ended."""
    open_files = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            open_files.add(os.stat(f"/proc/self/fd/{name}").st_ino)
        except OSError:
            continue
    return int(line.split()[4]) not in open_files


@pytest.mark.parametrize("how", ["release", "remove"])
def test_a_page_that_its_owner_gives_up_is_gone_for_the_other_too(two: Two, how: str) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    theirs.page(SOURCE)[:4] = b"gone"
    mine.map_foreign(PLACE, theirs, SOURCE)
    if how == "release":
        assert theirs.release(SOURCE)
    else:
        theirs.remove_page(SOURCE)
    assert not mine.has_page(PLACE)
    theirs.populate(SOURCE)
    theirs.page(SOURCE)[:4] = b"new!"
    assert not mine.has_page(PLACE)


def test_absent_ballooned_foreign_and_xens_own_pages_cannot_be_mapped(two: Two) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    theirs.release(Gfn(0x2001))
    theirs.place_xen_page(Gfn(0x2002), 0)
    theirs.map_foreign(Gfn(0x2003), mine, SOURCE)
    for gfn in (0x2001, 0x2002, 0x2003, 1 << 30, 0xFEE00):
        with pytest.raises(XenError) as refused:
            mine.map_foreign(PLACE, theirs, Gfn(gfn))
        assert refused.value.code == errno.EINVAL, hex(gfn)
    for place in (0xFEE00, 0xB0000, 0xFEC00, 0xF8000, 1 << 40):  # LAPIC, configuration space, IOAPIC, BARs, nowhere
        with pytest.raises(XenError):
            mine.map_foreign(Gfn(place), theirs, SOURCE)
    assert mine.shown_foreign == 0


def test_a_page_shown_over_another_replaces_it(two: Two) -> None:
    mine, theirs = two.dom0.memory, two.guest.memory
    theirs.page(SOURCE)[:1], theirs.page(Gfn(SOURCE + 1))[:1] = b"a", b"b"
    mine.map_foreign(PLACE, theirs, SOURCE)
    mine.map_foreign(PLACE, theirs, Gfn(SOURCE + 1))
    assert (bytes(mine.page(PLACE)[:1]), mine.shown_foreign) == (b"b", 1)
    theirs.release(SOURCE)  # no longer shown anywhere
    assert bytes(mine.page(PLACE)[:1]) == b"b"


def test_memory_that_is_not_shareable_is_refused(system: System, build: Build) -> None:
    two = Two(system, build("sleeper"), shareable=False)
    try:
        with pytest.raises(XenError):
            two.dom0.memory.map_foreign(PLACE, two.guest.memory, SOURCE)
    finally:
        two.close()


def map_grant(domain: Domain, granter: Domain, ref: int, place: int = PLACE) -> GnttabMapGrantRef:
    operation = GnttabMapGrantRef(host_addr=place * PAGE_BYTES, flags=2, ref=ref, dom=granter.domid)
    domain.memory.write(ARGUMENT_GPA, operation.pack())
    assert hypercall(domain, Hypercall.grant_table_op, 0, ARGUMENT, 1) == 0
    return GnttabMapGrantRef.unpack(domain.memory.read(ARGUMENT_GPA, operation.sizeof()))


def test_a_grant_is_mapped_by_hypercall_and_ends_with_either_domain(two: Two) -> None:
    grant(two.guest, 20, SOURCE, to=0)
    two.guest.memory.page(SOURCE)[:2] = b"hi"
    mapped = map_grant(two.dom0, two.guest, 20)
    assert (mapped.status, bytes(two.dom0.memory.page(PLACE)[:2])) == (0, b"hi")
    assert two.guest.grants.in_use() == [20]
    two.hypervisor.destroy(two.guest)
    assert two.dom0.memory.shown_foreign == 0
    operation = GnttabUnmapGrantRef(host_addr=PLACE * PAGE_BYTES, handle=mapped.handle)
    two.dom0.memory.write(ARGUMENT_GPA, operation.pack())
    assert hypercall(two.dom0, Hypercall.grant_table_op, 1, ARGUMENT, 1) == 0


def test_grants_of_dom0_that_a_guest_has_mapped_are_free_when_it_ends(two: Two) -> None:
    grant(two.dom0, 20, 0x3000, to=1)
    assert map_grant(two.guest, two.dom0, 20).status == 0
    assert two.dom0.grants.in_use() == [20]
    two.hypervisor.destroy(two.guest)
    assert two.dom0.grants.in_use() == []


def test_maps_that_race_with_the_granters_end_leave_nothing(two: Two) -> None:
    for ref in range(8, 40):
        grant(two.guest, ref, SOURCE + ref, to=0)
    going, statuses = threading.Event(), []

    def maps() -> None:
        for number in range(2000):
            going.set()
            mapped = map_grant(two.dom0, two.guest, 8 + number % 32, PLACE + number % 32)
            statuses.append(mapped.status)
            if two.hypervisor.find(1) is None and mapped.status:
                return

    thread = threading.Thread(target=maps)
    thread.start()
    going.wait()
    two.hypervisor.destroy(two.guest)
    thread.join(30)
    assert not thread.is_alive()
    assert two.dom0.memory.shown_foreign == 0
    assert two.dom0.outcome is None


def test_copies_that_race_with_the_granters_end_do_no_harm(two: Two) -> None:
    grant(two.guest, 20, SOURCE, to=0)
    going, ended = threading.Event(), threading.Event()

    def copies() -> None:
        while not ended.is_set():
            operation = GnttabCopy(source=20, source_domid=1, dest=0x3000, dest_domid=0x7FF0, len=4096, flags=1)
            two.dom0.memory.write(ARGUMENT_GPA, operation.pack())
            assert hypercall(two.dom0, Hypercall.grant_table_op, 5, ARGUMENT, 1) == 0
            going.set()

    thread = threading.Thread(target=copies)
    thread.start()
    going.wait()
    two.hypervisor.destroy(two.guest)
    ended.set()
    thread.join(30)
    assert not thread.is_alive()
    status = GnttabCopy.unpack(two.dom0.memory.read(ARGUMENT_GPA, GnttabCopy.sizeof())).status
    assert status in (0, -1, -2)


def test_a_channel_between_domains_ends_with_one_of_them(two: Two) -> None:
    far = two.dom0.events.alloc_unbound(Domid(1))
    near = two.guest.events.bind_interdomain(Domid(0), far)
    two.guest.events.send(near)
    two.hypervisor.destroy(two.guest)
    channel = two.dom0.events.status(far)
    assert channel is not None
    assert channel.far is None
    two.dom0.events.send(far)


def test_a_running_dom0_maps_grants_and_foreign_pages(system: System, build: Build, page_transport: Transport) -> None:
    two = Two(system, build("maps"), transport=page_transport)
    try:
        share_pages(two.guest)
        two.dom0.unpause()
        outcome = two.dom0.wait(60)
        two.dom0.stop()
        assert "PASS" in two.transcript.text, two.transcript.text
        assert outcome is not None
        assert (two.guest.grants.in_use(), two.dom0.memory.shown_foreign) == ([], 0)
    finally:
        two.close()


def test_the_guests_store_and_console_are_granted_to_dom0(two: Two) -> None:
    for ref, gfn in ((0, 0xFEFFF), (1, 0xFEFFC)):
        assert two.guest.grants.acquire(GrantRef(ref), Domid(0), write=True) == gfn
    assert two.guest.memory.read(0xFEFFC000 + 2068, 4) == b"\1\0\0\0"  # not connected: nobody has introduced it yet


def test_there_is_one_dom0_and_guests_beside_it_get_their_devices_there(
    system: System, build: Build, tmp_path: Path
) -> None:
    image = build("sleeper")
    two = Two(system, image)
    try:
        again, config = two.configs
        with pytest.raises(PyvmmError, match="has its initial domain already"):
            build_domain(two.hypervisor, again, load_image(image), [], Transcript())
        from vmm.devices.block.spec import parse_disk

        (tmp_path / "disk").write_bytes(bytes(1 << 20))
        config = config._replace(devices=(parse_disk(f"{tmp_path}/disk", "xvda"),))
        with pytest.raises(UsageError, match="are for dom0 to give"):
            build_domain(two.hypervisor, config, load_image(image), [], Transcript())
    finally:
        two.close()
