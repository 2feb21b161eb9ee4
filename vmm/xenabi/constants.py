"""Numbers of the Xen ABI, under the names that Xen's public headers give them."""

from enum import IntEnum, IntFlag

PAGE_BYTES = 4096
XEN_MAJOR, XEN_MINOR, XEN_EXTRA = 4, 17, ".7"
CPUID_BASE = 0x4000_0000
HYPERCALL_MSR = 0x4000_0000

DOMID_SELF = 0x7FF0
DOMID_INVALID = 0x7FF4
DOMID_FIRST_RESERVED = 0x7FF0

LEGACY_VCPUS = 32
"""vCPUs whose vcpu_info has a place in the shared info page (XEN_LEGACY_MAX_VCPUS)."""


class Hypercall(IntEnum):
    """xen.h: __HYPERVISOR_*."""

    set_trap_table = 0
    mmu_update = 1
    set_gdt = 2
    stack_switch = 3
    set_callbacks = 4
    fpu_taskswitch = 5
    sched_op_compat = 6
    platform_op = 7
    set_debugreg = 8
    get_debugreg = 9
    update_descriptor = 10
    memory_op = 12
    multicall = 13
    update_va_mapping = 14
    set_timer_op = 15
    event_channel_op_compat = 16
    xen_version = 17
    console_io = 18
    physdev_op_compat = 19
    grant_table_op = 20
    vm_assist = 21
    update_va_mapping_otherdomain = 22
    iret = 23
    vcpu_op = 24
    set_segment_base = 25
    mmuext_op = 26
    xsm_op = 27
    nmi_op = 28
    sched_op = 29
    callback_op = 30
    xenoprof_op = 31
    event_channel_op = 32
    physdev_op = 33
    hvm_op = 34
    sysctl = 35
    domctl = 36
    kexec_op = 37
    tmem_op = 38
    argo_op = 39
    xenpmu_op = 40
    dm_op = 41
    hypfs_op = 42
    mca = 48


class XenFeature(IntEnum):
    """features.h: bit numbers of XENVER_get_features, submap 0."""

    writable_page_tables = 0
    auto_translated_physmap = 2
    hvm_callback_vector = 8
    hvm_safe_pvclock = 9
    hvm_pirqs = 10
    dom0 = 11
    memory_op_vnode_supported = 13
    not_direct_mapped = 16


class ShutdownReason(IntEnum):
    """sched.h: SHUTDOWN_*."""

    poweroff = 0
    reboot = 1
    suspend = 2
    crash = 3
    watchdog = 4
    soft_reset = 5


class Virq(IntEnum):
    """xen.h: VIRQ_*."""

    TIMER = 0
    DEBUG = 1
    CONSOLE = 2
    DOM_EXC = 3
    TBUF = 4
    DEBUGGER = 6
    XENOPROF = 7
    CON_RING = 8
    PCPU_STATE = 9
    MEM_EVENT = 10
    ARGO = 11
    ENOMEM = 12
    XENPMU = 13


NR_VIRQS = 24
PER_VCPU_VIRQS = frozenset({Virq.TIMER, Virq.DEBUG, Virq.XENOPROF, Virq.XENPMU})


class HvmParam(IntEnum):
    """hvm/params.h: HVM_PARAM_*."""

    CALLBACK_IRQ = 0
    STORE_PFN = 1
    STORE_EVTCHN = 2
    VM86_TSS = 15
    CONSOLE_PFN = 17
    CONSOLE_EVTCHN = 18
    ACPI_IOPORTS_LOCATION = 19
    VM_GENERATION_ID_ADDR = 34
    ALTP2M = 35
    X87_FIP_WIDTH = 36
    VM86_TSS_SIZED = 37


HVM_NR_PARAMS = 39
CALLBACK_TYPE_VECTOR = 2
"""HVM_PARAM_CALLBACK_TYPE_VECTOR, in bits 56 to 63 of HVM_PARAM_CALLBACK_IRQ."""


class MapSpace(IntEnum):
    """memory.h: XENMAPSPACE_*."""

    shared_info = 0
    grant_table = 1
    gmfn = 2
    gmfn_range = 3
    gmfn_foreign = 4
    dev_mmio = 5


GRANT_STATUS_FRAMES = 1 << 31
"""XENMAPIDX_grant_table_status: in the index of XENMAPSPACE_grant_table, status frames instead of entries."""


class EvtchnStatusKind(IntEnum):
    """event_channel.h: EVTCHNSTAT_*."""

    closed = 0
    unbound = 1
    interdomain = 2
    pirq = 3
    virq = 4
    ipi = 5


class VcpuHvmMode(IntEnum):
    """hvm/hvm_vcpu.h: VCPU_HVM_MODE_*."""

    B32 = 0
    B64 = 1


class Runstate(IntEnum):
    """vcpu.h: RUNSTATE_*."""

    running = 0
    runnable = 1
    blocked = 2
    offline = 3


RUNSTATE_UPDATE = 1 << 63
"""XEN_RUNSTATE_UPDATE, in state_entry_time."""


class VmAssist(IntEnum):
    """xen.h: VMASST_TYPE_*."""

    runstate_update_flag = 5


class E820(IntEnum):
    """Types in a memory map (ACPI 6.4, 15.4)."""

    RAM = 1
    RESERVED = 2
    ACPI = 3
    NVS = 4


class HvmCpuidFeature(IntFlag):
    """arch-x86/cpuid.h: XEN_HVM_CPUID_*, EAX of leaf 4."""

    IOMMU_MAPPINGS = 1 << 2
    VCPU_ID_PRESENT = 1 << 3
    DOMID_PRESENT = 1 << 4
    UPCALL_VECTOR = 1 << 6
