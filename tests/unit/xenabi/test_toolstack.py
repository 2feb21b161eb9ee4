"""What only the initial domain may ask: sysctl, domctl, platform_op, physdev_op, and their one gate."""

import errno
import struct
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Domain, Hypervisor
from vmm.xenabi.constants import DOMID_SELF, Hypercall, ShutdownReason
from vmm.xenabi.cstruct import Abi, Struct
from vmm.xenabi.hypercalls import TABLE, dispatch, load_privileged, name_of, unfold
from vmm.xenabi.hypercalls.registry import PRIVILEGED, Controls, Suboperations
from vmm.xenabi.hypervisor_log import HypervisorLog
from vmm.xenabi.state import Call
from vmm.xenabi.toolstack_structs import (
    Domctl,
    DomctlGetdomaininfo,
    DomctlGetvcpuinfo,
    DomctlVcpuaffinity,
    PhysdevPciDevice,
    PlatformGetidletime,
    PlatformOp,
    PlatformPcpuinfo,
    PlatformPcpuVersion,
    Sysctl,
    SysctlAvailheap,
    SysctlCpupoolOp,
    SysctlCputopo,
    SysctlCputopoinfo,
    SysctlDebugKeys,
    SysctlGetcpuinfo,
    SysctlGetdomaininfolist,
    SysctlNumainfo,
    SysctlPhysinfo,
    SysctlReadconsole,
    SysctlSchedId,
)
from vmm.xenabi.values import Restart

load_privileged()

ARGUMENT, BUFFER = 0x2000, 0x4000
VERSIONS = {Hypercall.sysctl: 0x15, Hypercall.domctl: 0x15, Hypercall.platform_op: 0x0300_0001}
HEADERS: dict[Hypercall, type[Struct]] = {
    Hypercall.sysctl: Sysctl,
    Hypercall.domctl: Domctl,
    Hypercall.platform_op: PlatformOp,
}


Operand = TypeVar("Operand", bound=Struct)


class Dom0(Domain):
    """The initial domain, with a guest beside it."""

    def __init__(self) -> None:
        super().__init__(privileged=True, hypervisor=Hypervisor())
        self.guest = Domain(hypervisor=self.hypervisor)

    def ask(
        self, number: Hypercall, command: int, operand: Operand, domid: int = DOMID_SELF, abi: Abi = Abi.X86_64
    ) -> tuple[int, Operand]:
        """The result, and the structure as it was written back."""
        return ask(self, number, command, operand, domid, abi)


def ask(
    domain: Domain,
    number: Hypercall,
    command: int,
    operand: Operand,
    domid: int = DOMID_SELF,
    abi: Abi = Abi.X86_64,
    version: int | None = None,
) -> tuple[int, Operand]:
    """The same for any domain, and any interface version."""
    header = HEADERS[number]
    values = {"cmd": command, "interface_version": VERSIONS[number] if version is None else version}
    if header is Domctl:
        values["domain"] = domid
    place = ARGUMENT + header.offsetof("u", abi)
    domain.vcpus[0].write_virtual(ARGUMENT, header(**values).pack(abi))
    domain.vcpus[0].write_virtual(place, operand.pack(abi))
    result = dispatch(domain.call(number, ARGUMENT, abi=abi))
    return result, type(operand).unpack(domain.vcpus[0].read_virtual(place, operand.sizeof(abi)), abi)


@pytest.fixture
def dom0() -> Dom0:
    return Dom0()


# ------------------------------------------------------------------------------------------------ gate


def every_operation() -> "list[tuple[int, int]]":
    groups = [(number, TABLE[number]) for number in PRIVILEGED if number in TABLE]
    return [(number, sub) for number, group in groups if isinstance(group, Suboperations) for sub in group.entries]


@pytest.mark.parametrize(("number", "sub"), every_operation(), ids=lambda value: str(int(value)))
def test_an_unprivileged_domain_is_refused_each_of_them(number: int, sub: int) -> None:
    guest = Domain()
    if isinstance(TABLE[number], Controls):
        header = HEADERS[Hypercall(number)]
        guest.vcpus[0].write_virtual(ARGUMENT, header(cmd=sub, interface_version=VERSIONS[Hypercall(number)]).pack())
        assert dispatch(guest.call(number, ARGUMENT)) == -errno.EPERM
    else:
        assert dispatch(guest.call(number, sub, ARGUMENT)) == -PRIVILEGED[number]


@pytest.mark.parametrize("number", sorted(PRIVILEGED))
def test_nor_does_it_learn_which_there_are(number: int) -> None:
    """Where the version is looked at first, of a domain without privileges, too, an address is the first argument."""
    refused = -errno.EFAULT if number in VERSIONS else -PRIVILEGED[number]
    assert dispatch(Domain().call(number, 1 << 63)) == refused
    assert dispatch(Domain().call(number, 9999)) == (-errno.EACCES if number in VERSIONS else refused)


@pytest.mark.parametrize("number", HEADERS)
@pytest.mark.parametrize("version", [0, 0x14, 0x16, 0xFFFF_FFFF])
def test_another_interface_version_is_refused(dom0: Dom0, number: Hypercall, version: int) -> None:
    assert ask(dom0, number, 4, SysctlSchedId(), version=version)[0] == -errno.EACCES


@pytest.mark.parametrize("number", HEADERS)
def test_a_header_that_cannot_be_read_is_efault(dom0: Dom0, number: Hypercall) -> None:
    for pointer in (0, 0x1000 + (1 << 16) - 8, 1 << 63):
        assert dispatch(dom0.call(number, pointer)) == -errno.EFAULT


@pytest.mark.parametrize(
    ("number", "command", "code"),
    [
        (Hypercall.sysctl, 27, errno.EOPNOTSUPP),
        (Hypercall.sysctl, 99, errno.ENOSYS),
        (Hypercall.domctl, 2, errno.EOPNOTSUPP),
        (Hypercall.domctl, 6, errno.ENOSYS),
        (Hypercall.platform_op, 50, errno.ENOSYS),
        (Hypercall.platform_op, 64, errno.ENOSYS),
        (Hypercall.platform_op, 62, errno.EOPNOTSUPP),
    ],
)
def test_what_is_absent_is_refused_as_xen_would(dom0: Dom0, number: Hypercall, command: int, code: int) -> None:
    assert dom0.ask(number, command, SysctlSchedId())[0] == -code


@given(
    st.sampled_from(sorted(HEADERS)), st.integers(0, 100), st.binary(min_size=128, max_size=128), st.sampled_from(list(Abi))
)
def test_no_operation_with_random_content_raises(number: Hypercall, command: int, content: bytes, abi: Abi) -> None:
    dom0 = Dom0()
    header = HEADERS[number](cmd=command, interface_version=VERSIONS[number], u=content)
    dom0.vcpus[0].write_virtual(ARGUMENT, header.pack(abi))
    assert -256 < dispatch(dom0.call(number, ARGUMENT, abi=abi)) <= 0


def test_a_call_is_named_once_its_header_is_read_and_reads_it_once(dom0: Dom0) -> None:
    dom0.vcpus[0].write_virtual(ARGUMENT, Sysctl(cmd=3, interface_version=0x15).pack())
    call: Call = dom0.call(Hypercall.sysctl, ARGUMENT)
    unfold(call)
    dom0.vcpus[0].write_virtual(ARGUMENT, Sysctl(cmd=4, interface_version=0).pack())  # the guest changes it meanwhile
    assert dispatch(call) == 0
    assert name_of(call.number, call.args) == "sysctl.physinfo"


# ---------------------------------------------------------------------------------------------- sysctl


def test_physinfo_tells_of_the_host(dom0: Dom0) -> None:
    result, info = dom0.ask(Hypercall.sysctl, 3, SysctlPhysinfo())
    assert (result, info.nr_cpus, info.max_cpu_id, info.cores_per_socket, info.cpu_khz) == (0, 2, 1, 2, 2600000)
    assert (info.total_pages, info.free_pages) == (1 << 20, 1 << 19)
    assert info.hw_cap == struct.pack("<8I", *range(8))


def test_the_domain_list_has_all_domains_from_one_on(dom0: Dom0) -> None:
    dom0.guest.ended_by = ShutdownReason.crash
    request = SysctlGetdomaininfolist(first_domain=0, max_domains=8, buffer=BUFFER)
    result, answer = dom0.ask(Hypercall.sysctl, 6, request)
    size = DomctlGetdomaininfo.sizeof()
    rows = [DomctlGetdomaininfo.unpack(dom0.vcpus[0].read_virtual(BUFFER + n * size, size)) for n in range(2)]
    assert (result, answer.num_domains, [row.domain for row in rows]) == (0, 2, [0, 1])
    assert rows[0].flags & 1 << 5  # who asks runs
    assert rows[1].flags >> 16 == ShutdownReason.crash
    assert rows[1].flags & 1 << 2
    for first, room, expected in ((1, 8, 1), (0, 1, 1), (2, 8, 0), (0, 0, 0)):
        request = SysctlGetdomaininfolist(first_domain=first, max_domains=room, buffer=BUFFER)
        assert dom0.ask(Hypercall.sysctl, 6, request)[1].num_domains == expected


def test_the_scheduler_is_none_of_xens(dom0: Dom0) -> None:
    assert dom0.ask(Hypercall.sysctl, 4, SysctlSchedId(sched_id=7))[1].sched_id == 0


@pytest.mark.parametrize("abi", Abi)
def test_topology_idle_time_and_memory_have_a_row_a_cpu_and_a_node(dom0: Dom0, abi: Abi) -> None:
    result, topology = dom0.ask(Hypercall.sysctl, 16, SysctlCputopoinfo(num_cpus=8, cputopo=BUFFER), abi=abi)
    second = SysctlCputopo.unpack(dom0.vcpus[0].read_virtual(BUFFER + 12, 12))
    assert (result, topology.num_cpus, second.core, second.socket) == (0, 2, 1, 0)
    assert dom0.ask(Hypercall.sysctl, 16, SysctlCputopoinfo(), abi=abi)[1].num_cpus == 2
    assert dom0.ask(Hypercall.sysctl, 8, SysctlGetcpuinfo(max_cpus=1, info=BUFFER), abi=abi)[1].nr_cpus == 1
    assert struct.unpack("<Q", dom0.vcpus[0].read_virtual(BUFFER, 8)) == (1000,)
    assert dom0.ask(Hypercall.sysctl, 9, SysctlAvailheap(node=-1), abi=abi)[1].avail_bytes == 1 << 31
    assert dom0.ask(Hypercall.sysctl, 17, SysctlNumainfo(num_nodes=1, meminfo=BUFFER), abi=abi)[1].num_nodes == 1


def test_there_is_one_cpupool_with_every_cpu(dom0: Dom0) -> None:
    pool = SysctlCpupoolOp(op=3, cpupool_id=0, cpumap=BUFFER, cpumap_bits=16)
    result, found = dom0.ask(Hypercall.sysctl, 18, pool)
    assert (result, found.n_dom, dom0.vcpus[0].read_virtual(BUFFER, 2)) == (0, 2, b"\x03\0")
    pool.cpupool_id = 1
    assert dom0.ask(Hypercall.sysctl, 18, pool)[0] == -errno.ENOENT
    pool.op = 1
    assert dom0.ask(Hypercall.sysctl, 18, pool)[0] == -errno.EOPNOTSUPP


def log_of(dom0: Dom0) -> str:
    request = SysctlReadconsole(buffer=BUFFER, count=16384)
    answer = dom0.ask(Hypercall.sysctl, 1, request)[1]
    return dom0.vcpus[0].read_virtual(BUFFER, answer.count).decode()


def test_debug_keys_write_what_they_are_for_to_the_log(dom0: Dom0) -> None:
    dom0.vcpus[0].write_virtual(BUFFER, b"hqegz\n")
    dom0.guest.events.alloc_unbound(dom0.domid)
    outcome, left = dom0.ask(Hypercall.sysctl, 7, SysctlDebugKeys(keys=BUFFER, nr_keys=6))
    while outcome == Restart(()):  # a key at a time
        outcome, left = dom0.ask(Hypercall.sysctl, 7, left)
    assert (outcome, left.nr_keys) == (0, 0)
    log = log_of(dom0)
    for line in (
        "(XEN) 'h' pressed -> show this message",
        "(XEN)  key 'q' (ascii '71') => dump domain (and guest debug) info",
        "(XEN) General information for domain 1:",
        "(XEN)     VCPU0: CPU1 [has=F]",
        "(XEN) Event channel information for domain 1:",
        "(XEN) grant-table for remote d0 (v1): 0 in use",
        "(XEN) 'z' pressed -> no handler",
        "(XEN) '\\x0a' pressed -> no handler",
    ):
        assert f"{line}\n" in log, log


def test_the_log_can_be_read_on_and_cleared() -> None:
    ring = HypervisorLog(64)
    ring.note("one")
    first, index = ring.read(100, None, clear=False)
    ring.note("two")
    assert (first, ring.read(100, index, clear=False)[0]) == (b"(XEN) one\n", b"(XEN) two\n")
    assert ring.read(4, None, clear=False)[0] == b"(XEN"
    ring.read(100, None, clear=True)
    assert ring.read(100, None, clear=False)[0] == b""
    ring.note("x" * 200)
    assert ring.read(1000, None, clear=False)[0] == b"x" * 63 + b"\n"


# ---------------------------------------------------------------------------------------------- domctl


def test_a_domain_is_found_by_its_number_or_the_next(dom0: Dom0) -> None:
    for wanted, found in ((0, 0), (1, 1), (DOMID_SELF, 0)):
        result, info = dom0.ask(Hypercall.domctl, 5, DomctlGetdomaininfo(), wanted)
        assert (result, info.domain) == (0, found)
    del dom0.hypervisor.known[1]
    assert dom0.ask(Hypercall.domctl, 5, DomctlGetdomaininfo(), 1)[0] == -errno.ESRCH
    dom0.hypervisor.known[7] = dom0.guest
    dom0.guest.domid = type(dom0.guest.domid)(7)
    dom0.ask(Hypercall.domctl, 5, DomctlGetdomaininfo(), 1)
    assert Domctl.unpack(dom0.vcpus[0].read_virtual(ARGUMENT, Domctl.sizeof())).domain == 7


def test_a_vcpu_tells_where_it_is_and_may_be_anywhere(dom0: Dom0) -> None:
    result, info = dom0.ask(Hypercall.domctl, 14, DomctlGetvcpuinfo(vcpu=1), 1)
    assert (result, info.online, info.running, info.blocked, info.cpu, info.cpu_time) == (0, 1, 0, 1, 1, 7)
    assert dom0.ask(Hypercall.domctl, 14, DomctlGetvcpuinfo(vcpu=2), 1)[0] == -errno.EINVAL
    assert dom0.ask(Hypercall.domctl, 14, DomctlGetvcpuinfo(vcpu=0), 5)[0] == -errno.ESRCH
    affinity = DomctlVcpuaffinity(vcpu=0, flags=1, cpumap_hard=BUFFER, cpumap_hard_bits=8)
    assert dom0.ask(Hypercall.domctl, 25, affinity, 1)[0] == 0
    assert dom0.vcpus[0].read_virtual(BUFFER, 1) == b"\x03"
    assert dom0.ask(Hypercall.domctl, 25, DomctlVcpuaffinity(vcpu=0, flags=0), 1)[0] == -errno.EINVAL


# ---------------------------------------------------------------------------------- platform, physdev


def test_platform_tells_which_cpus_there_are(dom0: Dom0) -> None:
    for cpu, flags in ((0, 1), (1, 1), (2, 2)):
        result, info = dom0.ask(Hypercall.platform_op, 55, PlatformPcpuinfo(xen_cpuid=cpu))
        assert (result, info.flags, info.max_present) == (0, flags, 1)
    version = dom0.ask(Hypercall.platform_op, 48, PlatformPcpuVersion(xen_cpuid=1))[1]
    assert (version.vendor_id, version.family, version.stepping) == (b"AuthenticAMD", 23, 2)


def test_idle_times_are_given_for_the_cpus_that_are_asked_for(dom0: Dom0) -> None:
    dom0.vcpus[0].write_virtual(BUFFER, b"\xfe")
    request = PlatformGetidletime(cpumap_bitmap=BUFFER, cpumap_nr_cpus=8, idletime=BUFFER + 8)
    assert dom0.ask(Hypercall.platform_op, 53, request)[0] == 0
    assert dom0.vcpus[0].read_virtual(BUFFER, 1) == b"\x02"
    assert struct.unpack("<2Q", dom0.vcpus[0].read_virtual(BUFFER + 8, 16)) == (0, 2000)


def test_devices_on_the_bus_can_be_added_and_others_not(dom0: Dom0) -> None:
    for bus, command, result in ((0, 25, 0), (0, 26, 0), (1, 25, -errno.ENODEV), (1, 26, -errno.ENODEV)):
        dom0.vcpus[0].write_virtual(ARGUMENT, PhysdevPciDevice(bus=bus).pack() + bytes(8))
        assert dispatch(dom0.call(Hypercall.physdev_op, command, ARGUMENT)) == result
    assert "PCI add device 0000:00:00.0" in log_of(dom0)


@pytest.mark.parametrize("command", [13, 14, 21, 12, 23])
def test_pirqs_are_not_for_a_pvh_dom0(dom0: Dom0, command: int) -> None:
    assert dispatch(dom0.call(Hypercall.physdev_op, command, ARGUMENT)) == -errno.ENOSYS
