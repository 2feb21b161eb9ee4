"""The structures of Xen's public headers that guests hand to hypercalls, declared once."""

from vmm.xenabi.cstruct import (
    ALIGNED_U64,
    BYTES6,
    BYTES7,
    BYTES28,
    BYTES120,
    END_OF_INNER,
    HANDLE,
    I16,
    I32,
    U8,
    U16,
    U32,
    U64,
    ULONG,
    Struct,
)

# ------------------------------------------------------------------------------------------------- version.h


class PlatformParameters(Struct, c_name="xen_platform_parameters", header="version.h"):
    """XENVER_platform_parameters."""

    virt_start: ULONG


class FeatureInfo(Struct, c_name="xen_feature_info", header="version.h"):
    """XENVER_get_features: one word of feature bits."""

    submap_idx: U32
    submap: U32


# --------------------------------------------------------------------------------------------------- sched.h


class SchedShutdown(Struct, c_name="sched_shutdown", header="sched.h"):
    """SCHEDOP_shutdown and SCHEDOP_shutdown_code."""

    reason: U32


class SchedPoll(Struct, c_name="sched_poll", header="sched.h"):
    """SCHEDOP_poll: ports, and until when."""

    ports: HANDLE
    nr_ports: U32
    timeout: U64


# ------------------------------------------------------------------------------------------- event_channel.h


class EvtchnAllocUnbound(Struct, c_name="evtchn_alloc_unbound", header="event_channel.h"):
    """EVTCHNOP_alloc_unbound."""

    dom: U16
    remote_dom: U16
    port: U32


class EvtchnBindInterdomain(Struct, c_name="evtchn_bind_interdomain", header="event_channel.h"):
    """EVTCHNOP_bind_interdomain."""

    remote_dom: U16
    remote_port: U32
    local_port: U32


class EvtchnBindVirq(Struct, c_name="evtchn_bind_virq", header="event_channel.h"):
    """EVTCHNOP_bind_virq."""

    virq: U32
    vcpu: U32
    port: U32


class EvtchnBindIpi(Struct, c_name="evtchn_bind_ipi", header="event_channel.h"):
    """EVTCHNOP_bind_ipi."""

    vcpu: U32
    port: U32


class EvtchnBindPirq(Struct, c_name="evtchn_bind_pirq", header="event_channel.h"):
    """EVTCHNOP_bind_pirq."""

    pirq: U32
    flags: U32
    port: U32


class EvtchnClose(Struct, c_name="evtchn_close", header="event_channel.h"):
    """EVTCHNOP_close."""

    port: U32


class EvtchnSend(Struct, c_name="evtchn_send", header="event_channel.h"):
    """EVTCHNOP_send."""

    port: U32


class EvtchnStatus(Struct, c_name="evtchn_status", header="event_channel.h"):
    """EVTCHNOP_status."""

    dom: U16
    port: U32
    status: U32
    vcpu: U32
    u_dom: U16
    u_port: U32


class EvtchnBindVcpu(Struct, c_name="evtchn_bind_vcpu", header="event_channel.h"):
    """EVTCHNOP_bind_vcpu."""

    port: U32
    vcpu: U32


class EvtchnUnmask(Struct, c_name="evtchn_unmask", header="event_channel.h"):
    """EVTCHNOP_unmask."""

    port: U32


class EvtchnInitControl(Struct, c_name="evtchn_init_control", header="event_channel.h"):
    """EVTCHNOP_init_control: a vCPU's FIFO control block."""

    control_gfn: U64
    offset: U32
    vcpu: U32
    link_bits: U8
    _pad: BYTES7


class EvtchnExpandArray(Struct, c_name="evtchn_expand_array", header="event_channel.h"):
    """EVTCHNOP_expand_array: a page of FIFO event words."""

    array_gfn: U64


class EvtchnSetPriority(Struct, c_name="evtchn_set_priority", header="event_channel.h"):
    """EVTCHNOP_set_priority."""

    port: U32
    priority: U32


class EvtchnReset(Struct, c_name="evtchn_reset", header="event_channel.h"):
    """EVTCHNOP_reset."""

    dom: U16


# -------------------------------------------------------------------------------------------------- memory.h


class MemoryReservation(Struct, c_name="xen_memory_reservation", header="memory.h"):
    """XENMEM_increase_reservation, decrease_reservation, populate_physmap: a list of extents."""

    extent_start: HANDLE
    nr_extents: ULONG
    extent_order: U32
    mem_flags: U32
    domid: U16


class AddToPhysmap(Struct, c_name="xen_add_to_physmap", header="memory.h"):
    """XENMEM_add_to_physmap."""

    domid: U16
    size: U16
    space: U32
    idx: ULONG
    gpfn: ULONG


class AddToPhysmapBatch(Struct, c_name="xen_add_to_physmap_batch", header="memory.h"):
    """XENMEM_add_to_physmap_batch: lists of indices, gfns and errors."""

    domid: U16
    space: U16
    size: U16
    u: U16
    idxs: HANDLE
    gpfns: HANDLE
    errs: HANDLE


class RemoveFromPhysmap(Struct, c_name="xen_remove_from_physmap", header="memory.h"):
    """XENMEM_remove_from_physmap."""

    domid: U16
    gpfn: ULONG


class MemoryMap(Struct, c_name="xen_memory_map", header="memory.h"):
    """XENMEM_memory_map."""

    nr_entries: U32
    buffer: HANDLE


class MemoryDomain(Struct, c_name="xen_memory_domain", header="memory.h"):
    """The domid that several commands of memory_op take."""

    domid: U16


class ForeignMemoryMap(Struct, c_name="xen_foreign_memory_map", header="memory.h"):
    """XENMEM_set_memory_map."""

    domid: U16
    _map: END_OF_INNER
    map_nr_entries: U32
    map_buffer: HANDLE


class PodTarget(Struct, c_name="xen_pod_target", header="memory.h"):
    """XENMEM_set_pod_target and XENMEM_get_pod_target."""

    target_pages: U64
    tot_pages: U64
    pod_cache_pages: U64
    pod_entries: U64
    domid: U16


class MemAcquireResource(Struct, c_name="xen_mem_acquire_resource", header="memory.h"):
    """XENMEM_acquire_resource."""

    domid: U16
    type: U16
    id: U32
    nr_frames: U32
    pad: U32
    frame: U64
    frame_list: HANDLE


class MachphysMfnList(Struct, c_name="xen_machphys_mfn_list", header="memory.h"):
    """XENMEM_machphys_mfn_list."""

    max_extents: U32
    extent_start: HANDLE
    nr_extents: U32


class ReservedDeviceMemoryMap(Struct, c_name="xen_reserved_device_memory_map", header="memory.h"):
    """XENMEM_reserved_device_memory_map."""

    flags: U32
    nr_entries: U32
    buffer: HANDLE
    dev_pci_seg: U16
    dev_pci_bus: U8
    dev_pci_devfn: U8


class VnumaTopologyInfo(Struct, c_name="xen_vnuma_topology_info", header="memory.h"):
    """XENMEM_get_vnumainfo, as far as it is looked at: there is no virtual NUMA."""

    domid: U16
    pad: U16
    nr_vnodes: U32
    nr_vcpus: U32
    nr_vmemranges: U32
    vdistance_pad: U64
    vcpu_to_vnode_pad: U64
    vmemrange_pad: U64


class MemAccessOp(Struct, c_name="xen_mem_access_op", header="memory.h"):
    """XENMEM_access_op."""

    op: U8
    access: U8
    domid: U16
    nr: U32
    pfn: U64
    pfn_list: HANDLE
    access_list: HANDLE


class MemoryExchange(Struct, c_name="xen_memory_exchange", header="memory.h"):
    """XENMEM_exchange: two reservations, and how far it has got."""

    in_extent_start: HANDLE
    in_nr_extents: ULONG
    in_extent_order: U32
    in_mem_flags: U32
    in_domid: U16
    _end_in: END_OF_INNER
    out_extent_start: HANDLE
    out_nr_extents: ULONG
    out_extent_order: U32
    out_mem_flags: U32
    out_domid: U16
    _end_out: END_OF_INNER
    nr_exchanged: ULONG


# ---------------------------------------------------------------------------------------------- hvm/hvm_op.h


class HvmParamOp(Struct, c_name="xen_hvm_param", header="hvm/hvm_op.h"):
    """HVMOP_set_param and HVMOP_get_param."""

    domid: U16
    index: U32
    value: ALIGNED_U64


class HvmGetTime(Struct, c_name="xen_hvm_get_time", header="hvm/hvm_op.h"):
    """HVMOP_get_time."""

    now: U64


class HvmXentrace(Struct, c_name="xen_hvm_xentrace", header="hvm/hvm_op.h"):
    """HVMOP_xentrace: an event of the guest's own, with up to 28 bytes."""

    event: U16
    extra_bytes: U16
    extra: BYTES28


class HvmGetMemType(Struct, c_name="xen_hvm_get_mem_type", header="hvm/hvm_op.h"):
    """HVMOP_get_mem_type."""

    domid: U16
    mem_type: U16
    pad0: U16
    pad1: U16
    pfn: U64


class HvmPagetableDying(Struct, c_name="xen_hvm_pagetable_dying", header="hvm/hvm_op.h"):
    """HVMOP_pagetable_dying."""

    domid: U16
    pad: BYTES6
    gpa: U64


class HvmUpcallVector(Struct, c_name="xen_hvm_evtchn_upcall_vector", header="hvm/hvm_op.h"):
    """HVMOP_set_evtchn_upcall_vector."""

    vcpu: U32
    vector: U8


# ---------------------------------------------------------------------------------------------------- vcpu.h


class RegisterVcpuInfo(Struct, c_name="vcpu_register_vcpu_info", header="vcpu.h"):
    """VCPUOP_register_vcpu_info."""

    mfn: U64
    offset: U32
    rsvd: U32


class RegisterArea(Struct, c_name="vcpu_register_runstate_memory_area", header="vcpu.h"):
    """VCPUOP_register_runstate_memory_area."""

    addr: U64


class RegisterTimeArea(Struct, c_name="vcpu_register_time_memory_area", header="vcpu.h"):
    """VCPUOP_register_vcpu_time_memory_area."""

    addr: U64


class RunstateInfo(Struct, c_name="vcpu_runstate_info", header="vcpu.h"):
    """VCPUOP_get_runstate_info, and the area that a guest registers; times in nanoseconds."""

    state: I32
    state_entry_time: U64
    time_running: U64
    time_runnable: U64
    time_blocked: U64
    time_offline: U64


class SetSingleshotTimer(Struct, c_name="vcpu_set_singleshot_timer", header="vcpu.h"):
    """VCPUOP_set_singleshot_timer: an absolute system time, nanoseconds."""

    timeout_abs_ns: U64
    flags: U32


class SetPeriodicTimer(Struct, c_name="vcpu_set_periodic_timer", header="vcpu.h"):
    """VCPUOP_set_periodic_timer: a period, nanoseconds."""

    period_ns: U64


# -------------------------------------------------------------------------------------------- hvm/hvm_vcpu.h


class VcpuHvmContext(Struct, c_name="vcpu_hvm_context", header="hvm/hvm_vcpu.h"):
    """VCPUOP_initialise: the state of a vCPU, in one of two forms."""

    mode: U32
    pad: U32
    cpu_regs: BYTES120


class VcpuHvmX86(Struct, c_name="vcpu_hvm_x86_32", header="hvm/hvm_vcpu.h"):
    """Its 32-bit form."""

    eax: U32
    ecx: U32
    edx: U32
    ebx: U32
    esp: U32
    ebp: U32
    esi: U32
    edi: U32
    eip: U32
    eflags: U32
    cr0: U32
    cr3: U32
    cr4: U32
    pad1: U32
    efer: U64
    cs_base: U32
    ds_base: U32
    ss_base: U32
    es_base: U32
    tr_base: U32
    cs_limit: U32
    ds_limit: U32
    ss_limit: U32
    es_limit: U32
    tr_limit: U32
    cs_ar: U16
    ds_ar: U16
    ss_ar: U16
    es_ar: U16
    tr_ar: U16
    pad2: BYTES6


class VcpuHvmX86_64(Struct, c_name="vcpu_hvm_x86_64", header="hvm/hvm_vcpu.h"):
    """Its 64-bit form."""

    rax: U64
    rcx: U64
    rdx: U64
    rbx: U64
    rsp: U64
    rbp: U64
    rsi: U64
    rdi: U64
    rip: U64
    rflags: U64
    cr0: U64
    cr3: U64
    cr4: U64
    efer: U64


# --------------------------------------------------------------------------------------------- grant_table.h


class GnttabQuerySize(Struct, c_name="gnttab_query_size", header="grant_table.h"):
    """GNTTABOP_query_size."""

    dom: U16
    nr_frames: U32
    max_nr_frames: U32
    status: I16


class GnttabSetVersion(Struct, c_name="gnttab_set_version", header="grant_table.h"):
    """GNTTABOP_set_version."""

    version: U32


class GnttabGetVersion(Struct, c_name="gnttab_get_version", header="grant_table.h"):
    """GNTTABOP_get_version."""

    dom: U16
    pad: U16
    version: U32


class GnttabSetupTable(Struct, c_name="gnttab_setup_table", header="grant_table.h"):
    """GNTTABOP_setup_table."""

    dom: U16
    nr_frames: U32
    status: I16
    frame_list: HANDLE


class GnttabMapGrantRef(Struct, c_name="gnttab_map_grant_ref", header="grant_table.h"):
    """GNTTABOP_map_grant_ref."""

    host_addr: U64
    flags: U32
    ref: U32
    dom: U16
    status: I16
    handle: U32
    dev_bus_addr: U64


class GnttabUnmapGrantRef(Struct, c_name="gnttab_unmap_grant_ref", header="grant_table.h"):
    """GNTTABOP_unmap_grant_ref."""

    host_addr: U64
    dev_bus_addr: U64
    handle: U32
    status: I16


class GnttabCopy(Struct, c_name="gnttab_copy", header="grant_table.h"):
    """GNTTABOP_copy."""

    source: ULONG
    source_domid: U16
    source_offset: U16
    dest: ULONG
    dest_domid: U16
    dest_offset: U16
    _end: END_OF_INNER
    len: U16
    flags: U16
    status: I16


class SchedWatchdog(Struct, c_name="sched_watchdog", header="sched.h"):
    """SCHEDOP_watchdog: a timer that ends the domain."""

    id: U32
    timeout: U32


class SchedRemoteShutdown(Struct, c_name="sched_remote_shutdown", header="sched.h"):
    """SCHEDOP_remote_shutdown: a device model says that its domain has ended."""

    domain_id: U16
    reason: U32


class SchedPinOverride(Struct, c_name="sched_pin_override", header="sched.h"):
    """SCHEDOP_pin_override."""

    pcpu: I32


class GnttabSwapGrantRef(Struct, c_name="gnttab_swap_grant_ref", header="grant_table.h"):
    """GNTTABOP_swap_grant_ref."""

    ref_a: U32
    ref_b: U32
    status: I16


# ----------------------------------------------------------------------------------------------------- xen.h


class MulticallEntry(Struct, c_name="multicall_entry", header="xen.h"):
    """One call of a multicall, and its result."""

    op: ULONG
    result: ULONG
    arg0: ULONG
    arg1: ULONG
    arg2: ULONG
    arg3: ULONG
    arg4: ULONG
    arg5: ULONG


# ----------------------------------------------------------------------------- arch-x86/hvm/start_info.h


class HvmStartInfo(Struct, c_name="hvm_start_info", header="arch-x86/hvm/start_info.h"):
    """What a PVH kernel's entry finds at EBX."""

    magic: U32
    version: U32
    flags: U32
    nr_modules: U32
    modlist_paddr: U64
    cmdline_paddr: U64
    rsdp_paddr: U64
    memmap_paddr: U64
    memmap_entries: U32
    reserved: U32


class HvmModlistEntry(Struct, c_name="hvm_modlist_entry", header="arch-x86/hvm/start_info.h"):
    """A module of it."""

    paddr: U64
    size: U64
    cmdline_paddr: U64
    reserved: U64


class HvmMemmapEntry(Struct, c_name="hvm_memmap_table_entry", header="arch-x86/hvm/start_info.h"):
    """A row of its memory map."""

    addr: U64
    size: U64
    type: U32
    reserved: U32
