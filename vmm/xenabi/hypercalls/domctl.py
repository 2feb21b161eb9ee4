"""domctl: what the toolstack asks about a domain; the reading half.  xen/include/public/domctl.h"""

import errno
import struct

from vmm.xenabi.constants import DOMID_FIRST_RESERVED, DOMID_SELF, Hypercall
from vmm.xenabi.hypercalls.registry import TABLE, VERSIONS, Controls, suboperation, target_of
from vmm.xenabi.interfaces import VcpuState
from vmm.xenabi.state import Call, DomainState
from vmm.xenabi.toolstack_structs import (
    Domctl,
    DomctlAddressSize,
    DomctlGetdomaininfo,
    DomctlGetvcpuinfo,
    DomctlNodeaffinity,
    DomctlVcpuaffinity,
)
from vmm.xenabi.values import XenError

OP = Hypercall.domctl
_DYING, _HVM_GUEST, _SHUTDOWN, _BLOCKED, _RUNNING, _HAP = 1 << 0, 1 << 1, 1 << 2, 1 << 4, 1 << 5, 1 << 8
_SHUTDOWN_SHIFT = 16
_HARD, _SOFT = 1, 2
_NOWHERE = (1 << 64) - 1
_EMULATED_LAPIC, _EMULATED_IOAPIC, _VPCI = 1 << 0, 1 << 4, 1 << 10
GUEST_ADDRESS_BITS = 40
MAP_BYTES = 4096

TABLE[OP] = Controls(
    Domctl,
    VERSIONS[OP],
    absent=(
        *range(1, 5), *range(9, 14), 15, *range(16, 23), 24, *range(27, 30), *range(33, 36), *range(37, 41), 42, 43,
        *range(45, 49), 50, *range(54, 58), *range(59, 69), *range(71, 76), 77, 78, 79, *range(81, 87), *range(1000, 1004),
    ),
)  # fmt: skip


def _target(call: Call) -> DomainState:
    """The domain that the header names.  XenError(ESRCH)."""
    return target_of(call, call.args[2])


def _vcpu(domain: DomainState, number: int) -> VcpuState:
    if number >= len(domain.vcpus):
        raise XenError(errno.EINVAL)
    return domain.vcpus[number]


def describe(call: Call, domain: DomainState) -> DomctlGetdomaininfo:
    """All that there is to tell of a domain."""
    own = domain is call.domain
    online = [vcpu for vcpu in domain.vcpus if vcpu.online]
    flags = _HVM_GUEST | _HAP
    if domain.ended_by is not None:
        flags |= _SHUTDOWN | domain.ended_by << _SHUTDOWN_SHIFT
    elif own or any(vcpu.place()[1] for vcpu in online):
        flags |= _RUNNING
    else:
        flags |= _BLOCKED
    shared_info = domain.memory.placed_at(0)
    return DomctlGetdomaininfo(
        domain=domain.domid,
        flags=flags,
        tot_pages=domain.memory.pages,
        max_pages=domain.memory.maximum_pages,
        shared_info_frame=_NOWHERE if shared_info is None else shared_info,
        cpu_time=sum(vcpu.clock.runstate().time_running for vcpu in online),
        nr_online_vcpus=len(online),
        max_vcpu_id=len(domain.vcpus) - 1,
        handle=domain.handle,
        gpaddr_bits=GUEST_ADDRESS_BITS,
        emulation_flags=_EMULATED_LAPIC | (_EMULATED_IOAPIC | _VPCI if domain.privileged else 0),
    )


@suboperation(OP, 5, "getdomaininfo", arg=DomctlGetdomaininfo, out=True)
def getdomaininfo(call: Call, op: DomctlGetdomaininfo) -> None:
    """The domain of that number or, where there is none, the next; its number goes into the header, too."""
    wanted = call.domain.domid if call.args[2] == DOMID_SELF else call.args[2]
    if wanted >= DOMID_FIRST_RESERVED:
        raise XenError(errno.EINVAL)
    found = next((domain for domain in call.domain.hypervisor.domains() if domain.domid >= wanted), None)
    if found is None:
        raise XenError(errno.ESRCH)
    told = describe(call, found)
    for field in op.FIELDS:
        setattr(op, field, getattr(told, field))
    header = call.args[1] - Domctl.offsetof("u", call.abi)
    call.vcpu.write_virtual(header + Domctl.offsetof("domain", call.abi), struct.pack("<H", found.domid))


@suboperation(OP, 14, "getvcpuinfo", arg=DomctlGetvcpuinfo, out=True)
def getvcpuinfo(call: Call, op: DomctlGetvcpuinfo) -> None:
    """One vCPU's state, time, and the host's CPU that it was last on."""
    vcpu = _vcpu(_target(call), op.vcpu)
    op.cpu, running = vcpu.place()
    running = running or vcpu is call.vcpu
    op.online, op.running, op.blocked = int(vcpu.online), int(vcpu.online and running), int(vcpu.online and not running)
    op.cpu_time = vcpu.clock.runstate().time_running if vcpu.online else 0


@suboperation(OP, 25, "getvcpuaffinity", arg=DomctlVcpuaffinity, out=True)
def getvcpuaffinity(call: Call, op: DomctlVcpuaffinity) -> None:
    """Every CPU: vCPUs are not bound to any."""
    _vcpu(_target(call), op.vcpu)
    if not op.flags & (_HARD | _SOFT):
        raise XenError(errno.EINVAL)
    cpus = len(call.domain.hypervisor.facts().cpus)
    if op.flags & _HARD:
        write_bitmap(call, op.cpumap_hard, op.cpumap_hard_bits, cpus)
    if op.flags & _SOFT:
        write_bitmap(call, op.cpumap_soft, op.cpumap_soft_bits, cpus)


@suboperation(OP, 36, "get_address_size", arg=DomctlAddressSize, out=True)
def get_address_size(call: Call, op: DomctlAddressSize) -> None:
    """The width of a guest's pointers; one that is not PV has no fixed one, which Xen calls 64 bits."""
    _target(call)
    op.size = 64


@suboperation(OP, 69, "getnodeaffinity", arg=DomctlNodeaffinity, out=True)
def getnodeaffinity(call: Call, op: DomctlNodeaffinity) -> None:
    """The host's one node."""
    _target(call)
    write_bitmap(call, op.nodemap, op.nodemap_bits, 1)


def write_bitmap(call: Call, address: int, bits: int, ones: int) -> None:
    """A bitmap with its first bits set, as long as the caller has room (struct xenctl_bitmap)."""
    size = min(-(-bits // 8), MAP_BYTES)
    mask = (1 << min(ones, 8 * size)) - 1
    call.vcpu.write_virtual(address, mask.to_bytes(size, "little"))
