/*
 * The C part of pyvmm: entering a guest and being called back from it, and what must be one instruction.
 *
 * A vCPU thread sits in pyvmm_enter() with Python's lock released.  Any other thread brings it back at once by
 * setting loop->kicked and run->immediate_exit and then sending it the kick signal: set before KVM_RUN, the flag makes
 * it return; sent during KVM_RUN, the signal does.  The thread's own timer sends the same signal, whose handler then
 * sets loop->due and the flag: the loop raises the guest's timer event and goes on.
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
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

struct pyvmm_ram {
	uint64_t start, end;
	uintptr_t host;
};

/*
 * Where VIRQ_TIMER goes, for a guest on the FIFO ABI that has given it a queue of its own (Linux: priority 0): host
 * addresses of its event word, of the queue's head, of the ready word, and of vcpu_info.  Nothing else is ever in that
 * queue, so there is no tail to link behind, and Python, where it raises the same event, may do so at the same time.
 */
struct pyvmm_timer_event {
	uint32_t port; /* 0: Python raises it */
	uint32_t ready_bit;
	uintptr_t word, head, ready, info;
	int upcall_fd;
};

struct pyvmm_loop {
	int timer_fd; /* -1: everything goes to Python */
	int vm_fd;
	uint16_t port; /* an OUT to it is a hypercall */
	uint32_t vcpu_id;
	uint64_t python_after_ns; /* deadlines after this guest time are Python's */
	uint64_t answered, raised;
	struct pyvmm_ram ram[2]; /* mapped for as long as the vCPU runs */
	struct kvm_run *run;
	timer_t timer; /* signals the vCPU's thread */
	int has_timer, kicked, due;
	int64_t deadline_ns; /* of CLOCK_MONOTONIC, 0 while it is not armed */
	struct pyvmm_timer_event event;
};

static void kicked(int number, siginfo_t *info, void *context)
{
	(void)number, (void)context;
	if (info->si_code == SI_TIMER) {
		struct pyvmm_loop *loop = info->si_value.sival_ptr;

		__atomic_store_n(&loop->due, 1, __ATOMIC_SEQ_CST);
		loop->run->immediate_exit = 1;
	}
}

/* Make `number` interrupt KVM_RUN in the thread that receives it.  0, or -errno. */
static int pyvmm_install_kick(int number)
{
	struct sigaction action;

	memset(&action, 0, sizeof action);
	action.sa_sigaction = kicked;
	action.sa_flags = SA_SIGINFO; /* no SA_RESTART: the point is to interrupt */
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

/* Have the thread that calls this signalled by a timer of its own.  0, or -errno. */
static int pyvmm_own_timer(struct pyvmm_loop *loop, struct kvm_run *run, int number)
{
	struct sigevent event;

	memset(&event, 0, sizeof event);
	event.sigev_notify = SIGEV_THREAD_ID;
	event.sigev_signo = number;
	event.sigev_value.sival_ptr = loop;
	event._sigev_un._tid = (int)syscall(SYS_gettid);
	loop->run = run;
	if (timer_create(CLOCK_MONOTONIC, &event, &loop->timer) != 0)
		return -errno;
	loop->has_timer = 1;
	return 0;
}

static void pyvmm_no_timer(struct pyvmm_loop *loop)
{
	if (loop->has_timer)
		timer_delete(loop->timer);
	loop->has_timer = 0;
}

static int64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Arm that timer `delay_ns` from now (0: disarm).  0, or -errno. */
static int pyvmm_arm_own(struct pyvmm_loop *loop, int64_t delay_ns)
{
	struct itimerspec when;

	memset(&when, 0, sizeof when);
	when.it_value.tv_sec = delay_ns / 1000000000;
	when.it_value.tv_nsec = delay_ns % 1000000000;
	loop->deadline_ns = delay_ns ? now_ns() + delay_ns : 0;
	return timer_settime(loop->timer, 0, &when, NULL) == 0 ? 0 : -errno;
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
#define LONGEST_DELAY_NS (1ll << 60)
#define EVENT_PENDING (1u << 31)
#define EVENT_MASKED (1u << 30)
#define EVENT_LINKED (1u << 29)
#define EVENT_LINK ((1u << 17) - 1)

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
	if (delay_ns > LONGEST_DELAY_NS)
		delay_ns = LONGEST_DELAY_NS;
	if ((loop->event.port ? pyvmm_arm_own(loop, delay_ns) : pyvmm_arm(loop->timer_fd, delay_ns, 0)) != 0)
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

/* The timer has come: as FifoAbi.raise_event and mark_pending in Python do, xen/include/public/event_channel.h. */
static void pyvmm_raise_timer(struct pyvmm_loop *loop)
{
	const struct pyvmm_timer_event *event = &loop->event;
	uint32_t *word = (uint32_t *)event->word;

	if (loop->deadline_ns && loop->deadline_ns <= now_ns()) /* else the guest has set another meanwhile */
		loop->deadline_ns = 0;
	if (!event->port)
		return;
	loop->raised++;
	__atomic_fetch_or(word, EVENT_PENDING, __ATOMIC_SEQ_CST);
	if (__atomic_load_n(word, __ATOMIC_SEQ_CST) & EVENT_MASKED ||
	    __atomic_fetch_or(word, EVENT_LINKED, __ATOMIC_SEQ_CST) & EVENT_LINKED)
		return;
	__atomic_fetch_and(word, ~EVENT_LINK, __ATOMIC_SEQ_CST); /* the last of its queue, and the first */
	__atomic_store_n((uint32_t *)event->head, event->port, __ATOMIC_SEQ_CST);
	__atomic_fetch_or((uint32_t *)event->ready, event->ready_bit, __ATOMIC_SEQ_CST);
	__atomic_fetch_or((uint8_t *)event->info, 1, __ATOMIC_SEQ_CST);
	eventfd_write(event->upcall_fd, 1);
}

/* Run the guest until it needs an answer: the exit reason, or -errno (-EINTR after a kick, -EAGAIN after an INIT). */
static int pyvmm_enter(int vcpu_fd, struct kvm_run *run, struct pyvmm_loop *loop)
{
	for (;;) {
		run->immediate_exit = 0;
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		if (__atomic_load_n(&loop->kicked, __ATOMIC_SEQ_CST))
			run->immediate_exit = 1; /* KVM_RUN still completes the last exit's instruction */
		if (__atomic_exchange_n(&loop->due, 0, __ATOMIC_SEQ_CST))
			pyvmm_raise_timer(loop);
		if (ioctl(vcpu_fd, KVM_RUN, 0) == 0) {
			if (!pyvmm_answer(run, loop))
				return (int)run->exit_reason;
		} else if (errno != EINTR || __atomic_load_n(&loop->kicked, __ATOMIC_SEQ_CST)) {
			return -errno;
		}
	}
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
