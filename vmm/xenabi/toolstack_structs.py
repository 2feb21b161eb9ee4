"""The structures that a privileged domain hands to sysctl, domctl, platform_op and physdev_op.

Apart from the others since only a hypervisor with a dom0 needs them.
"""

from vmm.xenabi.cstruct import (
    ALIGNED_U64,
    BYTES6,
    BYTES7,
    BYTES12,
    BYTES16,
    BYTES32,
    BYTES128,
    HANDLE,
    HANDLE_64,
    I32,
    U8,
    U16,
    U32,
    U64,
    Struct,
)

# -------------------------------------------------------------------------------------------------- sysctl.h


class Sysctl(Struct, c_name="xen_sysctl", header="sysctl.h"):
    """The head of a sysctl, before what the command takes."""

    cmd: U32
    interface_version: U32
    u: BYTES128


class SysctlReadconsole(Struct, c_name="xen_sysctl_readconsole", header="sysctl.h"):
    """XEN_SYSCTL_readconsole."""

    clear: U8
    incremental: U8
    pad0: U8
    pad1: U8
    index: U32
    buffer: HANDLE_64
    count: U32


class SysctlPhysinfo(Struct, c_name="xen_sysctl_physinfo", header="sysctl.h"):
    """XEN_SYSCTL_physinfo."""

    threads_per_core: U32
    cores_per_socket: U32
    nr_cpus: U32
    max_cpu_id: U32
    nr_nodes: U32
    max_node_id: U32
    cpu_khz: U32
    capabilities: U32
    arch_capabilities: U32
    pad: U32
    total_pages: ALIGNED_U64
    free_pages: ALIGNED_U64
    scrub_pages: ALIGNED_U64
    outstanding_pages: ALIGNED_U64
    max_mfn: ALIGNED_U64
    hw_cap: BYTES32


class SysctlSchedId(Struct, c_name="xen_sysctl_sched_id", header="sysctl.h"):
    """XEN_SYSCTL_sched_id."""

    sched_id: U32


class SysctlGetdomaininfolist(Struct, c_name="xen_sysctl_getdomaininfolist", header="sysctl.h"):
    """XEN_SYSCTL_getdomaininfolist."""

    first_domain: U16
    max_domains: U32
    buffer: HANDLE_64
    num_domains: U32


class SysctlDebugKeys(Struct, c_name="xen_sysctl_debug_keys", header="sysctl.h"):
    """XEN_SYSCTL_debug_keys."""

    keys: HANDLE_64
    nr_keys: U32


class SysctlCpuinfo(Struct, c_name="xen_sysctl_cpuinfo", header="sysctl.h"):
    """A CPU of XEN_SYSCTL_getcpuinfo."""

    idletime: ALIGNED_U64


class SysctlGetcpuinfo(Struct, c_name="xen_sysctl_getcpuinfo", header="sysctl.h"):
    """XEN_SYSCTL_getcpuinfo."""

    max_cpus: U32
    info: HANDLE_64
    nr_cpus: U32


class SysctlAvailheap(Struct, c_name="xen_sysctl_availheap", header="sysctl.h"):
    """XEN_SYSCTL_availheap."""

    min_bitwidth: U32
    max_bitwidth: U32
    node: I32
    avail_bytes: ALIGNED_U64


class SysctlCputopo(Struct, c_name="xen_sysctl_cputopo", header="sysctl.h"):
    """A CPU of XEN_SYSCTL_cputopoinfo."""

    core: U32
    socket: U32
    node: U32


class SysctlCputopoinfo(Struct, c_name="xen_sysctl_cputopoinfo", header="sysctl.h"):
    """XEN_SYSCTL_cputopoinfo."""

    num_cpus: U32
    cputopo: HANDLE_64


class SysctlMeminfo(Struct, c_name="xen_sysctl_meminfo", header="sysctl.h"):
    """A node of XEN_SYSCTL_numainfo."""

    memsize: U64
    memfree: U64


class SysctlNumainfo(Struct, c_name="xen_sysctl_numainfo", header="sysctl.h"):
    """XEN_SYSCTL_numainfo."""

    num_nodes: U32
    meminfo: HANDLE_64
    distance: HANDLE_64


class SysctlPcitopoinfo(Struct, c_name="xen_sysctl_pcitopoinfo", header="sysctl.h"):
    """XEN_SYSCTL_pcitopoinfo."""

    num_devs: U32
    devs: HANDLE_64
    nodes: HANDLE_64


class SysctlCpupoolOp(Struct, c_name="xen_sysctl_cpupool_op", header="sysctl.h"):
    """XEN_SYSCTL_cpupool_op."""

    op: U32
    cpupool_id: U32
    sched_id: U32
    domid: U32
    cpu: U32
    n_dom: U32
    cpumap: HANDLE_64
    cpumap_bits: U32


# -------------------------------------------------------------------------------------------------- domctl.h


class Domctl(Struct, c_name="xen_domctl", header="domctl.h"):
    """The head of a domctl, before what the command takes."""

    cmd: U32
    interface_version: U32
    domain: U16
    _pad: BYTES6
    u: BYTES128


class DomctlGetdomaininfo(Struct, c_name="xen_domctl_getdomaininfo", header="domctl.h"):
    """XEN_DOMCTL_getdomaininfo."""

    domain: U16
    pad1: U16
    flags: U32
    tot_pages: ALIGNED_U64
    max_pages: ALIGNED_U64
    outstanding_pages: ALIGNED_U64
    shr_pages: ALIGNED_U64
    paged_pages: ALIGNED_U64
    shared_info_frame: ALIGNED_U64
    cpu_time: ALIGNED_U64
    nr_online_vcpus: U32
    max_vcpu_id: U32
    ssidref: U32
    handle: BYTES16
    cpupool: U32
    gpaddr_bits: U8
    pad2: BYTES7
    emulation_flags: U32
    misc_flags: U32


class DomctlGetvcpuinfo(Struct, c_name="xen_domctl_getvcpuinfo", header="domctl.h"):
    """XEN_DOMCTL_getvcpuinfo."""

    vcpu: U32
    online: U8
    blocked: U8
    running: U8
    cpu_time: ALIGNED_U64
    cpu: U32


class DomctlVcpuaffinity(Struct, c_name="xen_domctl_vcpuaffinity", header="domctl.h"):
    """XEN_DOMCTL_getvcpuaffinity."""

    vcpu: U32
    flags: U32
    cpumap_hard: HANDLE_64
    cpumap_hard_bits: U32
    cpumap_soft: HANDLE_64
    cpumap_soft_bits: U32


class DomctlNodeaffinity(Struct, c_name="xen_domctl_nodeaffinity", header="domctl.h"):
    """XEN_DOMCTL_getnodeaffinity."""

    nodemap: HANDLE_64
    nodemap_bits: U32


class DomctlAddressSize(Struct, c_name="xen_domctl_address_size", header="domctl.h"):
    """XEN_DOMCTL_get_address_size."""

    size: U32


# ------------------------------------------------------------------------------------------------ platform.h


class PlatformOp(Struct, c_name="xen_platform_op", header="platform.h"):
    """The head of a platform_op, before what the command takes."""

    cmd: U32
    interface_version: U32
    u: BYTES128


class PlatformPcpuinfo(Struct, c_name="xenpf_pcpuinfo", header="platform.h"):
    """XENPF_get_cpuinfo."""

    xen_cpuid: U32
    max_present: U32
    flags: U32
    apic_id: U32
    acpi_id: U32


class PlatformPcpuVersion(Struct, c_name="xenpf_pcpu_version", header="platform.h"):
    """XENPF_get_cpu_version."""

    xen_cpuid: U32
    max_present: U32
    vendor_id: BYTES12
    family: U32
    model: U32
    stepping: U32


class PlatformGetidletime(Struct, c_name="xenpf_getidletime", header="platform.h"):
    """XENPF_getidletime."""

    cpumap_bitmap: HANDLE
    cpumap_nr_cpus: U32
    idletime: HANDLE
    now: U64


class PlatformSettime64(Struct, c_name="xenpf_settime64", header="platform.h"):
    """XENPF_settime64."""

    secs: U64
    nsecs: U32
    mbz: U32
    system_time: U64


class PlatformEnterAcpiSleep(Struct, c_name="xenpf_enter_acpi_sleep", header="platform.h"):
    """XENPF_enter_acpi_sleep."""

    val_a: U16
    val_b: U16
    sleep_state: U32
    flags: U32


# ------------------------------------------------------------------------------------------------- physdev.h


class PhysdevPciDevice(Struct, c_name="physdev_pci_device", header="physdev.h"):
    """A PCI function: segment, bus, device and function."""

    seg: U16
    bus: U8
    devfn: U8


class PhysdevPciDeviceAdd(Struct, c_name="physdev_pci_device_add", header="physdev.h"):
    """PHYSDEVOP_pci_device_add."""

    seg: U16
    bus: U8
    devfn: U8
    flags: U32
    physfn_bus: U8
    physfn_devfn: U8


class PhysdevPciMmcfgReserved(Struct, c_name="physdev_pci_mmcfg_reserved", header="physdev.h"):
    """PHYSDEVOP_pci_mmcfg_reserved."""

    address: U64
    segment: U16
    start_bus: U8
    end_bus: U8
    flags: U32
