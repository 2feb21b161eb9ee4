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

/* Run the guest until it needs an answer: the exit reason, or -errno (-EINTR after a kick, -EAGAIN after an INIT). */
static int pyvmm_enter(int vcpu_fd, struct kvm_run *run)
{
	return ioctl(vcpu_fd, KVM_RUN, 0) == 0 ? (int)run->exit_reason : -errno;
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
