"""sysctl: what the toolstack asks about the machine; the reading half.  xen/include/public/sysctl.h"""

import errno
import struct
from collections.abc import Iterator

from vmm.xenabi.constants import PAGE_BYTES, EvtchnStatusKind, Hypercall
from vmm.xenabi.hypercalls.domctl import describe, write_bitmap
from vmm.xenabi.hypercalls.registry import TABLE, VERSIONS, Controls, suboperation
from vmm.xenabi.state import Call, HypervisorState
from vmm.xenabi.toolstack_structs import (
    DomctlGetdomaininfo,
    PhysdevPciDevice,
    Sysctl,
    SysctlAvailheap,
    SysctlCpuinfo,
    SysctlCpupoolOp,
    SysctlCputopo,
    SysctlCputopoinfo,
    SysctlDebugKeys,
    SysctlGetcpuinfo,
    SysctlGetdomaininfolist,
    SysctlMeminfo,
    SysctlNumainfo,
    SysctlPcitopoinfo,
    SysctlPhysinfo,
    SysctlReadconsole,
    SysctlSchedId,
)
from vmm.xenabi.values import Restart, XenError

OP = Hypercall.sysctl
MAX_DEVICES = 64
_CAN_HVM, _CAN_HAP, _GRANTS_V1, _GRANTS_V2 = 1 << 0, 1 << 3, 1 << 8, 1 << 9
_SCHEDULER_UNKNOWN = 0  # the host's own schedules vCPUs, which is none of Xen's
_POOL_INFO, _POOL_FREE = 3, 7
_LOCAL_DISTANCE = 10
_INVALID_DEVICE = (1 << 32) - 2

TABLE[OP] = Controls(Sysctl, VERSIONS[OP], absent=(2, 10, 11, 12, 14, 19, 20, 21, 23, 25, 26, 27, 29))


def _hypervisor(call: Call) -> HypervisorState:
    return call.domain.hypervisor


@suboperation(OP, 1, "readconsole", arg=SysctlReadconsole, out=True)
def readconsole(call: Call, op: SysctlReadconsole) -> None:
    """The hypervisor's log."""
    index = op.index if op.incremental else None
    data, op.index = _hypervisor(call).log.read(op.count, index, clear=bool(op.clear))
    call.vcpu.write_virtual(op.buffer, data)
    op.count = len(data)


@suboperation(OP, 3, "physinfo", arg=SysctlPhysinfo, out=True)
def physinfo(call: Call, op: SysctlPhysinfo) -> None:
    """CPUs and memory of the host."""
    facts = _hypervisor(call).facts()
    op.threads_per_core, op.cores_per_socket = facts.threads_per_core, facts.cores_per_socket
    op.nr_cpus, op.max_cpu_id = len(facts.cpus), len(facts.cpus) - 1
    op.nr_nodes, op.max_node_id, op.cpu_khz = 1, 0, facts.cpu_khz
    op.capabilities, op.arch_capabilities, op.pad = _CAN_HVM | _CAN_HAP | _GRANTS_V1 | _GRANTS_V2, 0, 0
    op.total_pages, op.free_pages = facts.total_pages, facts.free_pages
    op.scrub_pages = op.outstanding_pages = 0
    op.max_mfn = facts.total_pages - 1
    op.hw_cap = struct.pack("<8I", *facts.capabilities)


@suboperation(OP, 4, "sched_id", arg=SysctlSchedId, out=True)
def sched_id(call: Call, op: SysctlSchedId) -> None:
    """None of Xen's schedulers: vCPUs are threads of the host."""
    op.sched_id = _SCHEDULER_UNKNOWN


@suboperation(OP, 6, "getdomaininfolist", arg=SysctlGetdomaininfolist, out=True)
def getdomaininfolist(call: Call, op: SysctlGetdomaininfolist) -> None:
    """Every domain from one domid on, as many as there is room for."""
    size, count = DomctlGetdomaininfo.sizeof(call.abi), 0
    for domain in _hypervisor(call).domains():
        if domain.domid >= op.first_domain and count < op.max_domains:
            call.vcpu.write_virtual(op.buffer + count * size, describe(call, domain).pack(call.abi))
            count += 1
    op.num_domains = count


@suboperation(OP, 7, "debug_keys", arg=SysctlDebugKeys, out=True)
def debug_keys(call: Call, op: SysctlDebugKeys) -> Restart | None:
    """Write something to the log, by keys; one at a time, with what is left of them in the caller's structure."""
    if not op.nr_keys:
        return None
    _press(_hypervisor(call), chr(call.vcpu.read_virtual(op.keys, 1)[0]))
    op.keys, op.nr_keys = op.keys + 1, op.nr_keys - 1
    return Restart(()) if op.nr_keys else None


@suboperation(OP, 8, "getcpuinfo", arg=SysctlGetcpuinfo, out=True)
def getcpuinfo(call: Call, op: SysctlGetcpuinfo) -> None:
    """How long each CPU has been idle."""
    idle = _hypervisor(call).facts().idle_ns[: op.max_cpus]
    call.vcpu.write_virtual(op.info, b"".join(SysctlCpuinfo(idletime=each).pack(call.abi) for each in idle))
    op.nr_cpus = len(idle)


@suboperation(OP, 9, "availheap", arg=SysctlAvailheap, out=True)
def availheap(call: Call, op: SysctlAvailheap) -> None:
    """Memory that is still free, of the host's one node."""
    op.avail_bytes = _hypervisor(call).facts().free_pages * PAGE_BYTES if op.node in (-1, 0) else 0


@suboperation(OP, 16, "cputopoinfo", arg=SysctlCputopoinfo, out=True)
def cputopoinfo(call: Call, op: SysctlCputopoinfo) -> None:
    """Core and socket of each CPU; without a buffer, how many there are."""
    cpus = _hypervisor(call).facts().cpus
    if op.cputopo:
        rows = [SysctlCputopo(core=cpu.core, socket=cpu.socket, node=0) for cpu in cpus[: op.num_cpus]]
        call.vcpu.write_virtual(op.cputopo, b"".join(row.pack(call.abi) for row in rows))
    op.num_cpus = len(cpus)


@suboperation(OP, 17, "numainfo", arg=SysctlNumainfo, out=True)
def numainfo(call: Call, op: SysctlNumainfo) -> None:
    """One node with all of the memory."""
    facts = _hypervisor(call).facts()
    if op.num_nodes and op.meminfo:
        memory = SysctlMeminfo(memsize=facts.total_pages * PAGE_BYTES, memfree=facts.free_pages * PAGE_BYTES)
        call.vcpu.write_virtual(op.meminfo, memory.pack(call.abi))
    if op.num_nodes and op.distance:
        call.vcpu.write_virtual(op.distance, struct.pack("<I", _LOCAL_DISTANCE))
    op.num_nodes = 1


@suboperation(OP, 22, "pcitopoinfo", arg=SysctlPcitopoinfo, out=True)
def pcitopoinfo(call: Call, op: SysctlPcitopoinfo) -> None:
    """The node of each device of a list: the host's one, for those on the caller's bus."""
    size = PhysdevPciDevice.sizeof(call.abi)
    op.num_devs = min(op.num_devs, MAX_DEVICES)
    for number in range(op.num_devs):
        device = PhysdevPciDevice.unpack(call.vcpu.read_virtual(op.devs + number * size, size), call.abi)
        known = call.domain.has_pci_device(device.seg, device.bus, device.devfn)
        call.vcpu.write_virtual(op.nodes + 4 * number, struct.pack("<I", 0 if known else _INVALID_DEVICE))


@suboperation(OP, 18, "cpupool_op", arg=SysctlCpupoolOp, out=True)
def cpupool_op(call: Call, op: SysctlCpupoolOp) -> None:
    """One pool that has every CPU and every domain; asked for a later one, there is none."""
    hypervisor = _hypervisor(call)
    cpus = len(hypervisor.facts().cpus)
    if op.op == _POOL_INFO:
        if op.cpupool_id:
            raise XenError(errno.ENOENT)
        op.sched_id, op.n_dom = _SCHEDULER_UNKNOWN, len(hypervisor.domains())
        write_bitmap(call, op.cpumap, op.cpumap_bits, cpus)
    elif op.op == _POOL_FREE:
        write_bitmap(call, op.cpumap, op.cpumap_bits, 0)
    else:
        raise XenError(errno.EOPNOTSUPP)


# ------------------------------------------------------------------------------------------- debug keys


def _press(hypervisor: HypervisorState, key: str) -> None:
    found = _KEYS.get(key)
    if found is None:
        shown = key if key.isprintable() else f"\\x{ord(key):02x}"
        hypervisor.log.note(f"'{shown}' pressed -> no handler")
        return
    meaning, show = found
    hypervisor.log.note(f"'{key}' pressed -> {meaning}", *show(hypervisor))


def _help(hypervisor: HypervisorState) -> Iterator[str]:
    for key, (meaning, _) in sorted(_KEYS.items()):
        yield f" key '{key}' (ascii '{ord(key):02x}') => {meaning}"


def _dump_domains(hypervisor: HypervisorState) -> Iterator[str]:
    for domain in hypervisor.domains():
        yield f"General information for domain {domain.domid}:"
        yield f"    nr_pages={domain.memory.pages} max_pages={domain.memory.maximum_pages}"
        for vcpu in domain.vcpus:
            cpu, running = vcpu.place()
            state = f"CPU{cpu}" if vcpu.online else "offline"
            yield f"    VCPU{vcpu.id}: {state} [has={'T' if running else 'F'}]"


def _dump_ports(hypervisor: HypervisorState) -> Iterator[str]:
    for domain in hypervisor.domains():
        yield f"Event channel information for domain {domain.domid}:"
        for channel in domain.events.channels():
            more = ""
            if channel.kind is EvtchnStatusKind.interdomain:
                more = f" d={channel.remote_domid} p={channel.remote_port}"
            elif channel.kind is EvtchnStatusKind.virq:
                more = f" v={channel.virq}"
            yield f"    {channel.port:4} s={channel.kind.value} n={channel.vcpu}{more}"


def _dump_grants(hypervisor: HypervisorState) -> Iterator[str]:
    for domain in hypervisor.domains():
        grants = domain.grants.in_use()
        yield f"grant-table for remote d{domain.domid} (v{domain.grants.version}): {len(grants)} in use"
        for ref in grants:
            yield f"[{ref:#x}]"


_KEYS = {
    "h": ("show this message", _help),
    "q": ("dump domain (and guest debug) info", _dump_domains),
    "e": ("dump evtchn info", _dump_ports),
    "g": ("print grant table usage", _dump_grants),
}
