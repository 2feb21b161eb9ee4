/*
 * The C part of pyvmm: entering a guest and being called back from it, and what must be one instruction.
 *
 * A vCPU thread sits in pyvmm_enter() with Python's lock released.  Any other thread brings it back at once by
 * setting run->immediate_exit and then sending it the kick signal: set before KVM_RUN, the flag makes it return;
 * sent during KVM_RUN, the signal does.  The handler has nothing to do, but a signal without a handler would kill.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <unistd.h>

static void kicked(int number)
{
	(void)number;
}

/* Make `number` interrupt KVM_RUN in the thread that receives it.  0, or -errno. */
static int pyvmm_install_kick(int number)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_handler = kicked; /* no SA_RESTART: the point is to interrupt */
	sigemptyset(&action.sa_mask);
	return sigaction(number, &action, NULL) == 0 ? 0 : -errno;
}

/* Arm a CLOCK_MONOTONIC timerfd `delay_ns` from now (0: disarm), then every `period_ns` (0: once).  0, or -errno. */
static int pyvmm_arm(int timer_fd, int64_t delay_ns, int64_t period_ns)
{
	struct itimerspec when;

	memset(&when, 0, sizeof when);
	when.it_value.tv_sec = delay_ns / 1000000000;
	when.it_value.tv_nsec = delay_ns % 1000000000;
	when.it_interval.tv_sec = period_ns / 1000000000;
	when.it_interval.tv_nsec = period_ns % 1000000000;
	return timerfd_settime(timer_fd, 0, &when, NULL) == 0 ? 0 : -errno;
}

/*
 * A sleeping guest's one hypercall, answered without Python: VCPUOP_set_singleshot_timer of a 64-bit kernel for its own
 * vCPU (xen/include/public/vcpu.h).  Whatever is not quite that goes to Python, which answers alike.
 */
#define HYPERVISOR_VCPU_OP 24
#define VCPUOP_SET_SINGLESHOT_TIMER 8
#define EFER_LMA (1 << 10)
#define CR4_LA57 (1 << 12)
#define ENTRY_PRESENT 1
#define ENTRY_LARGE (1 << 7)
#define FRAME_MASK 0x000ffffffffff000ull
#define LONGEST_DELAY_NS (1ll << 62)

struct pyvmm_ram {
	uint64_t start, end;
	uintptr_t host;
};

struct pyvmm_loop {
	int timer_fd; /* -1: everything goes to Python */
	int vm_fd;
	uint16_t port; /* an OUT to it is a hypercall */
	uint32_t vcpu_id;
	uint64_t python_after_ns; /* deadlines after this guest time are Python's */
	uint64_t answered;
	struct pyvmm_ram ram[2]; /* mapped for as long as the vCPU runs */
};

/* Where guest-physical bytes are, or NULL. */
static const void *at(const struct pyvmm_loop *loop, uint64_t gpa, uint64_t size)
{
	for (size_t i = 0; i < sizeof loop->ram / sizeof loop->ram[0]; i++)
		if (gpa >= loop->ram[i].start && gpa < loop->ram[i].end && size <= loop->ram[i].end - gpa)
			return (const void *)(loop->ram[i].host + (gpa - loop->ram[i].start));
	return NULL;
}

/* The same for a linear address in 4-level paging; `size` bytes within one page. */
static const void *at_virtual(const struct pyvmm_loop *loop, uint64_t cr3, uint64_t address, uint64_t size)
{
	uint64_t table = cr3 & FRAME_MASK;

	if ((uint64_t)((int64_t)(address << 16) >> 16) != address || (address & 0xfff) + size > 0x1000)
		return NULL;
	for (int shift = 39;; shift -= 9) {
		const uint64_t *place = at(loop, table + (address >> shift & 0x1ff) * 8, 8);
		uint64_t entry = place ? __atomic_load_n(place, __ATOMIC_RELAXED) : 0;

		if (!(entry & ENTRY_PRESENT))
			return NULL;
		if (shift == 12 || (shift < 39 && entry & ENTRY_LARGE)) {
			uint64_t inside = (1ull << shift) - 1;

			return at(loop, (entry & FRAME_MASK & ~inside) | (address & inside), size);
		}
		table = entry & FRAME_MASK;
	}
}

/* Whether the exit was that hypercall, and has its answer. */
static int pyvmm_answer(struct kvm_run *run, struct pyvmm_loop *loop)
{
	struct kvm_regs *regs = &run->s.regs.regs;
	const struct kvm_sregs *sregs = &run->s.regs.sregs;
	struct kvm_clock_data clock;
	struct {
		uint64_t deadline_ns;
		uint32_t flags, pad;
	} argument;
	const void *place;
	uint64_t number, command, vcpu, pointer, delay_ns;

	if (loop->timer_fd < 0)
		return 0;
	if (run->exit_reason == KVM_EXIT_XEN && run->xen.u.hcall.longmode && !run->xen.u.hcall.cpl) {
		number = run->xen.u.hcall.input;
		command = run->xen.u.hcall.params[0], vcpu = run->xen.u.hcall.params[1];
		pointer = run->xen.u.hcall.params[2];
	} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == loop->port &&
		   run->io.direction == KVM_EXIT_IO_OUT && sregs->cs.l && !sregs->ss.dpl) {
		number = regs->rax;
		command = regs->rdi, vcpu = regs->rsi, pointer = regs->rdx;
	} else {
		return 0;
	}
	if ((uint32_t)number != HYPERVISOR_VCPU_OP || (uint32_t)command != VCPUOP_SET_SINGLESHOT_TIMER ||
	    vcpu != loop->vcpu_id || !(sregs->efer & EFER_LMA) || sregs->cr4 & CR4_LA57)
		return 0;
	place = at_virtual(loop, sregs->cr3, pointer, sizeof argument);
	if (!place)
		return 0;
	memcpy(&argument, place, sizeof argument); /* once: the guest may change it meanwhile */
	if (argument.flags || argument.deadline_ns > loop->python_after_ns ||
	    ioctl(loop->vm_fd, KVM_GET_CLOCK, &clock) != 0)
		return 0;
	delay_ns = argument.deadline_ns > clock.clock ? argument.deadline_ns - clock.clock : 1;
	if (pyvmm_arm(loop->timer_fd, delay_ns < LONGEST_DELAY_NS ? (int64_t)delay_ns : LONGEST_DELAY_NS, 0) != 0)
		return 0;
	loop->answered++;
	if (run->exit_reason == KVM_EXIT_XEN) {
		run->xen.u.hcall.result = 0;
	} else {
		regs->rax = 0;
		run->kvm_dirty_regs |= KVM_SYNC_X86_REGS;
	}
	return 1;
}

/* Run the guest until it needs an answer: the exit reason, or -errno (-EINTR after a kick, -EAGAIN after an INIT). */
static int pyvmm_enter(int vcpu_fd, struct kvm_run *run, struct pyvmm_loop *loop)
{
	do {
		if (ioctl(vcpu_fd, KVM_RUN, 0) != 0)
			return -errno;
	} while (pyvmm_answer(run, loop));
	return (int)run->exit_reason;
}

/*
 * Atomic operations on memory that a running guest changes too; each returns the value before.  Python has none.
 */
static uint64_t pyvmm_fetch_or_64(uintptr_t address, uint64_t bits)
{
	return __atomic_fetch_or((uint64_t *)address, bits, __ATOMIC_SEQ_CST);
}

static uint64_t pyvmm_fetch_and_64(uintptr_t address, uint64_t bits)
{
	return __atomic_fetch_and((uint64_t *)address, bits, __ATOMIC_SEQ_CST);
}

static uint32_t pyvmm_exchange_32(uintptr_t address, uint32_t expected, uint32_t wanted)
{
	__atomic_compare_exchange_n((uint32_t *)address, &expected, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	return expected;
}
