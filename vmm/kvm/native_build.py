"""Building `vmm.kvm._native`: the run loop in C and the kernel's KVM structures, by cffi in API mode.

Every `...` below is filled in by the compiler from <linux/kvm.h>: no layout or number is written down twice.
"""

import shutil
import subprocess
import sysconfig
from pathlib import Path

import cffi

HERE = Path(__file__).resolve().parent

CONSTANTS = [
    "KVM_API_VERSION",
    "KVM_GET_API_VERSION",
    "KVM_CREATE_VM",
    "KVM_CHECK_EXTENSION",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_ENABLE_CAP",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_CREATE_VCPU",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_GET_DIRTY_LOG",
    "KVM_SET_GSI_ROUTING",
    "KVM_IRQ_LINE",
    "KVM_IRQFD",
    "KVM_IOEVENTFD",
    "KVM_X86_SET_MSR_FILTER",
    "KVM_XEN_HVM_CONFIG",
    "KVM_XEN_HVM_SET_ATTR",
    "KVM_XEN_VCPU_SET_ATTR",
    "KVM_XEN_VCPU_GET_ATTR",
    "KVM_GET_CLOCK",
    "KVM_SET_SIGNAL_MASK",
    "KVM_GET_REGS",
    "KVM_SET_REGS",
    "KVM_GET_SREGS",
    "KVM_SET_SREGS",
    "KVM_GET_MSRS",
    "KVM_X86_SETUP_MCE",
    "KVM_SET_MSRS",
    "KVM_SET_CPUID2",
    "KVM_GET_VCPU_EVENTS",
    "KVM_SET_VCPU_EVENTS",
    "KVM_GET_MP_STATE",
    "KVM_SET_MP_STATE",
    "KVM_TRANSLATE",
    "KVM_INTERRUPT",
    "KVM_NMI",
    "KVM_SET_GUEST_DEBUG",
    "KVM_GUESTDBG_ENABLE",
    "KVM_GUESTDBG_SINGLESTEP",
    "KVM_GUESTDBG_USE_SW_BP",
    "KVM_GUESTDBG_USE_HW_BP",
    "KVM_GUESTDBG_INJECT_DB",
    "KVM_GUESTDBG_INJECT_BP",
    "KVM_GUESTDBG_BLOCKIRQ",
    "KVM_CAP_SET_GUEST_DEBUG2",
    "KVM_GET_LAPIC",
    "KVM_SET_LAPIC",
    "KVM_GET_TSC_KHZ",
    "KVM_CAP_USER_MEMORY",
    "KVM_CAP_IRQFD",
    "KVM_CAP_IOEVENTFD",
    "KVM_CAP_SYNC_REGS",
    "KVM_CAP_IMMEDIATE_EXIT",
    "KVM_CAP_SPLIT_IRQCHIP",
    "KVM_CAP_X86_USER_SPACE_MSR",
    "KVM_CAP_X86_MSR_FILTER",
    "KVM_CAP_XEN_HVM",
    "KVM_CAP_NR_MEMSLOTS",
    "KVM_CAP_NR_VCPUS",
    "KVM_CAP_MAX_VCPUS",
    "KVM_CAP_READONLY_MEM",
    "KVM_CAP_VCPU_EVENTS",
    "KVM_CAP_GET_TSC_KHZ",
    "KVM_CAP_X2APIC_API",
    "KVM_CAP_ADJUST_CLOCK",
    "KVM_CAP_EXT_CPUID",
    "KVM_CAP_MP_STATE",
    "KVM_X2APIC_API_USE_32BIT_IDS",
    "KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK",
    "KVM_MEM_LOG_DIRTY_PAGES",
    "KVM_MEM_READONLY",
    "KVM_SYNC_X86_REGS",
    "KVM_SYNC_X86_SREGS",
    "KVM_SYNC_X86_EVENTS",
    "KVM_EXIT_UNKNOWN",
    "KVM_EXIT_EXCEPTION",
    "KVM_EXIT_IO",
    "KVM_EXIT_HYPERCALL",
    "KVM_EXIT_DEBUG",
    "KVM_EXIT_HLT",
    "KVM_EXIT_MMIO",
    "KVM_EXIT_IRQ_WINDOW_OPEN",
    "KVM_EXIT_SHUTDOWN",
    "KVM_EXIT_FAIL_ENTRY",
    "KVM_EXIT_INTR",
    "KVM_EXIT_INTERNAL_ERROR",
    "KVM_EXIT_SYSTEM_EVENT",
    "KVM_EXIT_IOAPIC_EOI",
    "KVM_EXIT_X86_RDMSR",
    "KVM_EXIT_X86_WRMSR",
    "KVM_EXIT_XEN",
    "KVM_EXIT_IO_IN",
    "KVM_EXIT_IO_OUT",
    "KVM_EXIT_XEN_HCALL",
    "KVM_INTERNAL_ERROR_EMULATION",
    "KVM_INTERNAL_ERROR_SIMUL_EX",
    "KVM_INTERNAL_ERROR_DELIVERY_EV",
    "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON",
    "KVM_MSR_FILTER_MAX_RANGES",
    "KVM_MSR_FILTER_READ",
    "KVM_MSR_FILTER_WRITE",
    "KVM_MSR_FILTER_DEFAULT_ALLOW",
    "KVM_MSR_EXIT_REASON_FILTER",
    "KVM_MSR_EXIT_REASON_UNKNOWN",
    "KVM_MSR_EXIT_REASON_INVAL",
    "KVM_IRQ_ROUTING_MSI",
    "KVM_IRQFD_FLAG_DEASSIGN",
    "KVM_IOEVENTFD_FLAG_PIO",
    "KVM_IOEVENTFD_FLAG_DATAMATCH",
    "KVM_IOEVENTFD_FLAG_DEASSIGN",
    "KVM_MP_STATE_RUNNABLE",
    "KVM_MP_STATE_UNINITIALIZED",
    "KVM_MP_STATE_HALTED",
    "KVM_VCPUEVENT_VALID_SHADOW",
    "KVM_XEN_HVM_CONFIG_HYPERCALL_MSR",
    "KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL",
    "KVM_XEN_HVM_CONFIG_SHARED_INFO",
    "KVM_XEN_HVM_CONFIG_RUNSTATE",
    "KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL",
    "KVM_XEN_HVM_CONFIG_EVTCHN_SEND",
    "KVM_XEN_ATTR_TYPE_LONG_MODE",
    "KVM_XEN_ATTR_TYPE_SHARED_INFO",
    "KVM_XEN_ATTR_TYPE_UPCALL_VECTOR",
    "KVM_XEN_ATTR_TYPE_EVTCHN",
    "KVM_XEN_EVTCHN_DEASSIGN",
    "KVM_XEN_EVTCHN_RESET",
    "KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL",
    "KVM_XEN_ATTR_TYPE_XEN_VERSION",
    "KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO",
    "KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO",
    "KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR",
    "KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA",
    "KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID",
    "KVM_XEN_VCPU_ATTR_TYPE_TIMER",
    "KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR",
    "KVM_CPUID_FLAG_SIGNIFCANT_INDEX",
    "MAP_FIXED",
    "MAP_NORESERVE",
    "MAP_PRIVATE",
    "MAP_SHARED",
    "MAP_ANONYMOUS",
    "PROT_NONE",
    "PROT_READ",
    "PROT_WRITE",
    "MREMAP_MAYMOVE",
    "MREMAP_FIXED",
    "MREMAP_DONTUNMAP",
    "MADV_HUGEPAGE",
    "MADV_DONTNEED",
    "MADV_REMOVE",
    "CLOCK_MONOTONIC",
    "TFD_CLOEXEC",
    "TFD_NONBLOCK",
]

STRUCTS = """
struct kvm_userspace_memory_region { uint32_t slot, flags; uint64_t guest_phys_addr, memory_size, userspace_addr; ...; };
struct kvm_dirty_log { uint32_t slot; void *dirty_bitmap; ...; };
struct kvm_enable_cap { uint32_t cap, flags; uint64_t args[4]; ...; };
struct kvm_regs { uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags; };
struct kvm_segment { uint64_t base; uint32_t limit; uint16_t selector; uint8_t type, present, dpl, db, s, l, g, avl, unusable, padding; };
struct kvm_dtable { uint64_t base; uint16_t limit, padding[3]; };
struct kvm_sregs { struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt; struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base, interrupt_bitmap[4]; };
struct kvm_vcpu_events {
    struct { uint8_t injected, nr, has_error_code, pending; uint32_t error_code; } exception;
    struct { uint8_t injected, nr, soft, shadow; } interrupt;
    struct { uint8_t injected, pending, masked, pad; } nmi;
    uint32_t sipi_vector, flags;
    struct { uint8_t smm, pending, smm_inside_nmi, latched_init; } smi;
    struct { uint8_t pending; } triple_fault;
    uint8_t reserved[26], exception_has_payload; uint64_t exception_payload; };
struct kvm_sync_regs { struct kvm_regs regs; struct kvm_sregs sregs; struct kvm_vcpu_events events; };
struct kvm_xen_exit { uint32_t type; union { struct { uint32_t longmode, cpl; uint64_t input, result, params[6]; } hcall; } u; };
struct kvm_debug_exit_arch { uint32_t exception, pad; uint64_t pc, dr6, dr7; };
struct kvm_guest_debug_arch { uint64_t debugreg[8]; };
struct kvm_guest_debug { uint32_t control, pad; struct kvm_guest_debug_arch arch; };
struct kvm_run {
    uint8_t request_interrupt_window, immediate_exit; uint32_t exit_reason;
    uint8_t ready_for_interrupt_injection, if_flag; uint16_t flags; uint64_t cr8, apic_base;
    union {
        struct { uint64_t hardware_exit_reason; } hw;
        struct { uint64_t hardware_entry_failure_reason; uint32_t cpu; } fail_entry;
        struct { uint8_t direction, size; uint16_t port; uint32_t count; uint64_t data_offset; } io;
        struct { uint64_t phys_addr; uint8_t data[8]; uint32_t len; uint8_t is_write; } mmio;
        struct { uint8_t vector; } eoi;
        struct { uint32_t suberror, ndata; uint64_t data[16]; } internal;
        struct { uint32_t type, ndata; uint64_t data[16]; } system_event;
        struct { uint8_t error, pad[7]; uint32_t reason, index; uint64_t data; } msr;
        struct kvm_xen_exit xen;
        struct { struct kvm_debug_exit_arch arch; } debug;
        char padding[256]; };
    uint64_t kvm_valid_regs, kvm_dirty_regs;
    union { struct kvm_sync_regs regs; char padding[2048]; } s; ...; };
typedef ... *timer_t;
struct timespec { long tv_sec, tv_nsec; ...; };
struct itimerspec { struct timespec it_interval, it_value; ...; };
struct pyvmm_ram { uint64_t start, end; uintptr_t host; };
#define PORT_OF_PYTHON ...
#define PORT_RINGS ...
#define PORT_IPI ...
#define PORT_TIMER ...
struct pyvmm_port { int does, fd; uint32_t vcpu, priority, queue; };
struct pyvmm_target { uintptr_t info, block; int upcall_fd; uint32_t tails[16]; };
typedef union { ...; } pthread_mutex_t;
struct pyvmm_events { pthread_mutex_t lock; int waiting; uintptr_t shared, words[4]; struct pyvmm_port ports[4096]; struct pyvmm_target vcpus[]; ...; };
struct pyvmm_loop { int answers, vm_fd; uint16_t port; uint32_t vcpu_id; uint64_t python_after_ns, answered, raised; struct pyvmm_ram ram[2];
    int signal; timer_t timer; int has_timer, kicked, due; int64_t deadline_ns; uint32_t timer_port; struct pyvmm_events *events; ...; };
struct kvm_cpuid_entry2 { uint32_t function, index, flags, eax, ebx, ecx, edx; ...; };
struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };
struct kvm_msr_filter_range { uint32_t flags, nmsrs, base; uint8_t *bitmap; ...; };
struct kvm_msr_filter { uint32_t flags; struct kvm_msr_filter_range ranges[16]; ...; };
struct kvm_irq_level { uint32_t irq, level; ...; };
struct kvm_irqfd { uint32_t fd, gsi, flags; ...; };
struct kvm_ioeventfd { uint64_t datamatch, addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_irq_routing_msi { uint32_t address_lo, address_hi, data, devid; };
struct kvm_irq_routing_entry { uint32_t gsi, type, flags; union { struct kvm_irq_routing_msi msi; uint32_t pad[8]; } u; ...; };
struct kvm_irq_routing { uint32_t nr, flags; struct kvm_irq_routing_entry entries[]; ...; };
struct kvm_mp_state { uint32_t mp_state; ...; };
struct kvm_interrupt { uint32_t irq; };
struct kvm_lapic_state { char regs[1024]; };
struct kvm_translation { uint64_t linear_address, physical_address; uint8_t valid, writeable, usermode; ...; };
struct kvm_signal_mask { uint32_t len; uint8_t sigset[]; };
struct kvm_clock_data { uint64_t clock; uint32_t flags; ...; };
struct kvm_xen_hvm_config { uint32_t flags, msr; uint64_t blob_addr_32, blob_addr_64; uint8_t blob_size_32, blob_size_64; ...; };
struct kvm_xen_hvm_attr { uint16_t type; union { uint8_t long_mode, vector; uint32_t xen_version;
    struct { uint64_t gfn; } shared_info;
    struct { uint32_t send_port, type, flags; union { struct { uint32_t port, vcpu, priority; } port; struct { uint32_t port; int32_t fd; } eventfd; uint32_t padding[4]; } deliver; } evtchn;
    uint64_t pad[8]; } u; ...; };
struct kvm_xen_vcpu_attr { uint16_t type; union { uint64_t gpa; uint32_t vcpu_id; uint8_t vector;
    struct { uint32_t port, priority; uint64_t expires_ns; } timer;
    struct { uint64_t state, state_entry_time, time_running, time_runnable, time_blocked, time_offline; } runstate;
    uint64_t pad[8]; } u; ...; };
"""

FUNCTIONS = """
int ioctl(int fd, unsigned long request, ...);
void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset);
int munmap(void *addr, size_t length);
int madvise(void *addr, size_t length, int advice);
void *mremap(void *old_address, size_t old_size, size_t new_size, int flags, ...);
void *memcpy(void *destination, const void *source, size_t size);
int timerfd_create(int clockid, int flags);
static int pyvmm_install_kick(int number);
static int pyvmm_enter(int vcpu_fd, struct kvm_run *run, struct pyvmm_loop *loop);
static int pyvmm_answer(struct kvm_run *run, struct pyvmm_loop *loop);
static int pyvmm_own_timer(struct pyvmm_loop *loop);
static int pyvmm_take_signal(struct pyvmm_loop *loop);
int timer_delete(timer_t timer);
static int pyvmm_arm_own(struct pyvmm_loop *loop, int64_t delay_ns);
static int pyvmm_raise_timer(struct pyvmm_loop *loop);
static int pyvmm_queue(struct pyvmm_events *events, uint32_t number, uint32_t vcpu, uint32_t priority, int raise);
static int pyvmm_send(struct pyvmm_events *events, uint32_t number, int as);
int pthread_mutex_lock(pthread_mutex_t *mutex);
int pthread_mutex_unlock(pthread_mutex_t *mutex);
int timerfd_settime(int fd, int flags, const struct itimerspec *new_value, struct itimerspec *old_value);
int timerfd_gettime(int fd, struct itimerspec *value);
static void pyvmm_mark_entries(uintptr_t table, const uint32_t *numbers, int count, uint32_t usual, uint32_t ignored,
    uint32_t bits, uint32_t *found);
static void pyvmm_unmark_entries(uintptr_t table, const uint32_t *numbers, int count, uint32_t bits);
static uint64_t pyvmm_fetch_or_64(uintptr_t address, uint64_t bits);
static uint64_t pyvmm_fetch_and_64(uintptr_t address, uint64_t bits);
static uint32_t pyvmm_exchange_32(uintptr_t address, uint32_t expected, uint32_t wanted);
"""

MISSING_COMPILER = (
    "pyvmm has one small C file, and no C compiler was found to build it: install one (Debian: apt-get install gcc)"
)
MISSING_HEADER = (
    "pyvmm is built against <linux/kvm.h> and <Python.h>, and the C compiler does not find {header}: "
    "install it (Debian: apt-get install linux-libc-dev libc6-dev python3-dev)"
)


def check_toolchain() -> None:
    """Exit with one sentence where the compiler or a header that the build needs is missing."""
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None and shutil.which("cc") is None:
        raise SystemExit(MISSING_COMPILER)
    compiler = compiler if shutil.which(compiler) else "cc"
    include = ["-I" + sysconfig.get_paths()["include"]]
    for header in ("linux/kvm.h", "Python.h"):
        probe = subprocess.run(
            [compiler, *include, "-E", "-x", "c", "-"],
            input=f"#include <{header}>\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        if probe.returncode != 0:
            raise SystemExit(MISSING_HEADER.format(header=f"<{header}>"))


def builder() -> cffi.FFI:
    """The cffi builder that setuptools runs (named in setup.py)."""
    check_toolchain()
    ffi = cffi.FFI()
    ffi.cdef(STRUCTS + FUNCTIONS + "".join(f"static const unsigned long long {name};\n" for name in CONSTANTS))
    ffi.set_source("vmm.kvm._native", (HERE / "native.c").read_text(), extra_compile_args=["-O2", "-Wno-unused-function"])
    return ffi
