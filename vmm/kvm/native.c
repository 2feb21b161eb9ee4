/*
 * The C part of pyvmm: entering a guest and being called back from it, and what must be one instruction.
 *
 * A vCPU thread sits in pyvmm_enter() with Python's lock released.  Any other thread brings it back at once by
 * setting loop->kicked and then sending it the kick signal, which the thread lets in during KVM_RUN alone: from then on
 * KVM_RUN returns at once, until the loop has taken the signal.  The thread's own timer sends the same signal: the loop
 * raises the guest's timer event and goes on.
 */
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
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

#define LONGEST_DELAY_NS (1ull << 60)
enum { PORTS = 4096, WORDS_A_PAGE = 1024, PRIORITIES = 16 };
enum { PORT_OF_PYTHON, PORT_RINGS, PORT_IPI, PORT_TIMER };

/* What a port is to the loop: what sending to it does, and the FIFO queue that its event was last put in. */
struct pyvmm_port {
	int does;
	int fd; /* the eventfd that it rings */
	uint32_t vcpu, priority;
	uint32_t queue; /* vcpu * PRIORITIES + priority */
};

/* A vCPU that events go to, by host addresses, 0 or -1 where it has none yet. */
struct pyvmm_target {
	uintptr_t info, block; /* struct vcpu_info, struct evtchn_fifo_control_block */
	int upcall_fd;
	uint32_t tails[PRIORITIES];
};

/*
 * A domain's event channels, as far as its vCPUs' loops serve them.  `lock` guards all of it.  `waiting`: so many vCPUs
 * wait for an event in Python, which only Python can wake.
 */
struct pyvmm_events {
	pthread_mutex_t lock;
	int waiting;
	uintptr_t shared; /* 2-level ABI of a 64-bit guest: struct shared_info, else 0 */
	uintptr_t words[PORTS / WORDS_A_PAGE]; /* FIFO ABI: the pages of event words */
	struct pyvmm_port ports[PORTS];
	struct pyvmm_target vcpus[];
};

struct pyvmm_loop {
	int answers; /* 0: everything goes to Python */
	int vm_fd;
	uint16_t port; /* an OUT to it is a hypercall */
	uint32_t vcpu_id, timer_port; /* VIRQ_TIMER's, 0: Python raises it */
	uint64_t python_after_ns; /* deadlines after this guest time are Python's */
	uint64_t answered, raised;
	struct pyvmm_ram ram[2]; /* mapped for as long as the vCPU runs */
	int signal; /* kicks the vCPU's thread, and comes from its timer, too */
	timer_t timer;
	int has_timer, kicked, due;
	int64_t deadline_ns; /* of CLOCK_MONOTONIC, 0 while it is not armed */
	struct pyvmm_events *events;
};

static void do_nothing(int number)
{
	(void)number;
}

static int pyvmm_install_kick(int number) /* or it would be the end of the process */
{
	return signal(number, do_nothing) == SIG_ERR ? -errno : 0;
}

/* Take the signal that has interrupted KVM_RUN: cheaper than its handler.  Whether the timer is due. */
static int pyvmm_take_signal(struct pyvmm_loop *loop)
{
	const struct timespec at_once = { 0 };
	uint64_t kick = 1ull << (loop->signal - 1);
	siginfo_t info;

	loop->due |= syscall(SYS_rt_sigtimedwait, &kick, &info, &at_once, sizeof kick) > 0 && info.si_code == SI_TIMER;
	return loop->due;
}

/* Have the thread that calls this signalled by a timer of its own.  0, or -errno. */
static int pyvmm_own_timer(struct pyvmm_loop *loop)
{
	struct sigevent event = { .sigev_notify = SIGEV_THREAD_ID, .sigev_signo = loop->signal };

	event._sigev_un._tid = (int)syscall(SYS_gettid);
	if (timer_create(CLOCK_MONOTONIC, &event, &loop->timer) != 0)
		return -errno;
	loop->has_timer = 1;
	return 0;
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
	struct itimerspec when = { .it_value = { delay_ns / 1000000000, delay_ns % 1000000000 } };

	loop->deadline_ns = delay_ns ? now_ns() + delay_ns : 0;
	return timer_settime(loop->timer, 0, &when, NULL) == 0 ? 0 : -errno;
}

enum { EFER_LMA = 1 << 10, CR4_LA57 = 1 << 12, ENTRY_PRESENT = 1, ENTRY_LARGE = 1 << 7 };
#define FRAME_MASK 0x000ffffffffff000ull

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

/* Atomic operations on memory that a running guest changes too; each returns the value before.  Python has none. */
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

/* Many entries of two words: set `bits` in the first, where it is `usual` but for the `ignored`; the second, or -1. */
static void pyvmm_mark_entries(uintptr_t table, const uint32_t *numbers, int count, uint32_t usual, uint32_t ignored,
			       uint32_t bits, uint32_t *found)
{
	for (int i = 0; i < count; i++) {
		uint32_t *entry = (uint32_t *)table + 2 * (size_t)numbers[i], word = __atomic_load_n(entry, __ATOMIC_SEQ_CST);

		found[i] = (word & ~ignored) != usual ? -1 :
			   pyvmm_exchange_32((uintptr_t)entry, word, word | bits) == word ? entry[1] : -1;
	}
}

static void pyvmm_unmark_entries(uintptr_t table, const uint32_t *numbers, int count, uint32_t bits)
{
	for (int i = 0; i < count; i++)
		__atomic_fetch_and((uint32_t *)table + 2 * (size_t)numbers[i], ~bits, __ATOMIC_SEQ_CST);
}

/* How an event is shown to a guest: xen/include/public/event_channel.h, and xen.h for the 2-level ABI. */
enum { HEADS_OFFSET = 8, LINK_TRIES = 64, PENDING_OFFSET = 2048, MASK_OFFSET = 2048 + 512, SELECTOR_OFFSET = 8 };
static const uint32_t PENDING = 1u << 31, MASKED = 1u << 30, LINKED = 1u << 29, BUSY = 1u << 28, LINK = (1u << 17) - 1;

static uint32_t *word_of(const struct pyvmm_events *events, uint32_t port)
{
	uintptr_t page = events->words[port / WORDS_A_PAGE];

	return page ? (uint32_t *)page + port % WORDS_A_PAGE : NULL;
}

/* Let the word of `tail` point to `port`, if the guest has not taken it out of the queue. */
static int link_behind(const struct pyvmm_events *events, uint32_t tail, uint32_t port)
{
	uint32_t *word = word_of(events, tail), before;

	for (int tries = 0; tries < LINK_TRIES && (before = __atomic_load_n(word, __ATOMIC_SEQ_CST)) & LINKED; tries++)
		if (pyvmm_exchange_32((uintptr_t)word, before, (before & ~(LINK | BUSY)) | port) == before)
			return 1;
	return 0; /* a guest that changes the word all the time loses its events */
}

/* FIFO: `mark` an event's word and queue it, unless it is masked or queued; whether the vCPU is to be told. */
static int queue_event(struct pyvmm_events *events, uint32_t number, uint32_t vcpu, uint32_t priority, uint32_t mark)
{
	struct pyvmm_target *target = &events->vcpus[vcpu];
	uint32_t *word = word_of(events, number), *tail = &target->tails[priority], *place = &events->ports[number].queue;
	uint32_t *old = &events->vcpus[*place / PRIORITIES].tails[*place % PRIORITIES];

	if (__atomic_or_fetch(word, mark, __ATOMIC_SEQ_CST) & MASKED || !target->block ||
	    __atomic_fetch_or(word, LINKED, __ATOMIC_SEQ_CST) & LINKED)
		return 0;
	__atomic_fetch_and(word, ~LINK, __ATOMIC_SEQ_CST); /* it becomes the last of its queue, and leaves its old one */
	if (*old == number)
		*old = 0;
	if (!*tail || !link_behind(events, *tail, number)) /* the queue was empty */
		__atomic_store_n((uint32_t *)(target->block + HEADS_OFFSET) + priority, number, __ATOMIC_SEQ_CST);
	*tail = number;
	*place = vcpu * PRIORITIES + priority;
	__atomic_fetch_or((uint32_t *)target->block, 1u << priority, __ATOMIC_SEQ_CST);
	return 1;
}

/* The same for Python, which has checked the numbers; `raise`: the event is made pending first. */
static int pyvmm_queue(struct pyvmm_events *events, uint32_t number, uint32_t vcpu, uint32_t priority, int raise)
{
	int told;

	pthread_mutex_lock(&events->lock);
	told = queue_event(events, number, vcpu, priority, raise ? PENDING : 0);
	pthread_mutex_unlock(&events->lock);
	return told;
}

/* 2-level: make an event pending and select its word; whether the vCPU is to be told. */
static int select_event(const struct pyvmm_events *events, uint32_t number, const struct pyvmm_target *target)
{
	uint64_t bit = 1ull << number % 64, *pending = (uint64_t *)(events->shared + PENDING_OFFSET) + number / 64;
	const uint64_t *mask = (const uint64_t *)(events->shared + MASK_OFFSET) + number / 64;

	if (__atomic_fetch_or(pending, bit, __ATOMIC_SEQ_CST) & bit || __atomic_load_n(mask, __ATOMIC_SEQ_CST) & bit)
		return 0;
	__atomic_fetch_or((uint64_t *)(target->info + SELECTOR_OFFSET), 1ull << number / 64, __ATOMIC_SEQ_CST);
	return 1;
}

/* Show a vCPU of the domain's own an event; `tell` becomes the eventfd that interrupts it.  0: for Python to do. */
static int raise_event(struct pyvmm_events *events, uint32_t number, int *tell)
{
	const struct pyvmm_port *port = &events->ports[number];
	const struct pyvmm_target *target = &events->vcpus[port->vcpu];
	int told;

	if (events->waiting || !target->info || target->upcall_fd < 0 ||
	    !(events->shared || (target->block && word_of(events, number))))
		return 0;
	told = events->shared ? select_event(events, number, target) :
				queue_event(events, number, port->vcpu, port->priority, PENDING);
	if (told) {
		__atomic_fetch_or((uint8_t *)target->info, 1, __ATOMIC_SEQ_CST);
		*tell = target->upcall_fd;
	}
	return 1;
}

/* What sending to a port does (`as`: PORT_IPI), or the timer (PORT_TIMER); 0 where that is for Python to do. */
static int pyvmm_send(struct pyvmm_events *events, uint32_t number, int as)
{
	const struct pyvmm_port *port;
	int done, tell = -1;

	if (!events || number >= PORTS)
		return 0;
	port = &events->ports[number];
	pthread_mutex_lock(&events->lock);
	done = port->does == PORT_RINGS ? !eventfd_write(port->fd, 1) :
					  port->does == as && raise_event(events, number, &tell);
	pthread_mutex_unlock(&events->lock);
	if (tell >= 0) /* unlocked: who writes is often put aside for whom that wakes */
		eventfd_write(tell, 1);
	return done;
}

/* The timer has come; 0 where Python is to raise its event. */
static int pyvmm_raise_timer(struct pyvmm_loop *loop)
{
	int done = !loop->timer_port || pyvmm_send(loop->events, loop->timer_port, PORT_TIMER); /* no port: not armed */

	loop->due = 0;
	if (loop->deadline_ns && loop->deadline_ns <= now_ns()) /* else the guest has set another meanwhile */
		loop->deadline_ns = 0;
	loop->raised += done;
	return done;
}

/* VCPUOP_set_singleshot_timer (xen/include/public/vcpu.h); 0 where that is for Python to do. */
static int set_timer(struct pyvmm_loop *loop, const void *place)
{
	struct kvm_clock_data clock;
	uint64_t argument[2], delay_ns = 1; /* deadline, flags in the lower half */

	memcpy(argument, place, sizeof argument); /* once: the guest may change it meanwhile */
	if (!loop->timer_port || (uint32_t)argument[1] || argument[0] > loop->python_after_ns ||
	    ioctl(loop->vm_fd, KVM_GET_CLOCK, &clock) != 0)
		return 0;
	if (argument[0] > clock.clock)
		delay_ns = argument[0] - clock.clock;
	if (delay_ns > LONGEST_DELAY_NS)
		delay_ns = LONGEST_DELAY_NS;
	return pyvmm_arm_own(loop, delay_ns) == 0;
}

enum { VCPU_OP = 24, SET_SINGLESHOT_TIMER = 8, EVENT_CHANNEL_OP = 32, EVTCHNOP_SEND = 4 };

/*
 * Whether the exit was one of the two hypercalls that Linux makes all the time, by a 64-bit kernel, and has its answer.
 * Whatever is not quite that goes to Python, which answers alike.
 */
static int pyvmm_answer(struct kvm_run *run, struct pyvmm_loop *loop)
{
	struct kvm_regs *regs = &run->s.regs.regs;
	const struct kvm_sregs *sregs = &run->s.regs.sregs;
	const void *place = NULL;
	uint64_t number, args[3];
	int done = 0;

	if (!loop->answers)
		return 0;
	if (run->exit_reason == KVM_EXIT_XEN && run->xen.u.hcall.longmode && !run->xen.u.hcall.cpl) {
		number = run->xen.u.hcall.input;
		memcpy(args, run->xen.u.hcall.params, sizeof args);
	} else if (run->exit_reason == KVM_EXIT_IO && run->io.port == loop->port &&
		   run->io.direction == KVM_EXIT_IO_OUT && sregs->cs.l && !sregs->ss.dpl) {
		number = regs->rax;
		args[0] = regs->rdi, args[1] = regs->rsi, args[2] = regs->rdx;
	} else {
		return 0;
	}
	if (!(sregs->efer & EFER_LMA) || sregs->cr4 & CR4_LA57)
		return 0;
	if ((uint32_t)number == EVENT_CHANNEL_OP && (uint32_t)args[0] == EVTCHNOP_SEND) {
		place = at_virtual(loop, sregs->cr3, args[1], 4);
		done = place && pyvmm_send(loop->events, __atomic_load_n((const uint32_t *)place, __ATOMIC_RELAXED), PORT_IPI);
	} else if ((uint32_t)number == VCPU_OP && (uint32_t)args[0] == SET_SINGLESHOT_TIMER &&
		   args[1] == loop->vcpu_id) {
		place = at_virtual(loop, sregs->cr3, args[2], 16);
		done = place && set_timer(loop, place);
	}
	if (!done)
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

/* Run the guest until it needs an answer: exit reason, or -EINTR (a kick), -EAGAIN (an INIT), -ETIME (its timer). */
static int pyvmm_enter(int vcpu_fd, struct kvm_run *run, struct pyvmm_loop *loop)
{
	for (;;) {
		/* KVM_RUN then only completes the last exit's instruction. */
		run->immediate_exit = __atomic_load_n(&loop->kicked, __ATOMIC_SEQ_CST) != 0;
		if (loop->due && !pyvmm_raise_timer(loop))
			return -ETIME;
		if (ioctl(vcpu_fd, KVM_RUN, 0) == 0) {
			if (!pyvmm_answer(run, loop))
				return (int)run->exit_reason;
		} else if (errno != EINTR) {
			return -errno;
		} else {
			pyvmm_take_signal(loop);
			if (__atomic_load_n(&loop->kicked, __ATOMIC_SEQ_CST))
				return -EINTR;
		}
	}
}
