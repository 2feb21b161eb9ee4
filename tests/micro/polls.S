/*
 * SCHEDOP_poll with a timeout, which is a system time: one that has come sleeps no longer, and one that is to come does not
 * sleep far beyond it.  It may be answered early; who polls looks again.
 */
#include "guest.inc"
#include "events.inc"
#include "clock.inc"
#define TRIES 300
#define TIMES 3			/* as long as a hypercall that does nothing, at most */
#define MORE_NS 50000000
#define AHEAD_NS 20000000
#define LATE_NS 400000000
main:
	xorl %r15d, %r15d
	call lapic_on
	call prepare_for_events
	movl $23, %edi
	movl $set_vector, %esi
	hypercall HVM_OP
	expect 0, "set_evtchn_upcall_vector"
	movl $1, %edi
	movl $bind_timer, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "bind_virq"

	call now
	movq %rax, %r12
	movl $TRIES, %r13d
3:	xorl %edi, %edi
	hypercall XEN_VERSION
	decl %r13d
	jnz 3b
	call now
	subq %r12, %rax
	imulq $TIMES, %rax, %r14
	addq $MORE_NS, %r14
	call now
	movq %rax, %r12
	movq $1, timeout
	movl $TRIES, %r13d
1:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "a poll whose time has come"
	decl %r13d
	jnz 1b
	call now
	subq %r12, %rax
	cmpq %r14, %rax
	setae %al
	movzbl %al, %eax
	expect 0, "polls whose time has come sleep"

	call now
	addq $AHEAD_NS, %rax
	movq %rax, timeout
2:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "a poll whose time is to come"
	call now
	subq timeout, %rax
	js 2b
	cmpq $LATE_NS, %rax
	setae %al
	movzbl %al, %eax
	expect 0, "a poll sleeps far beyond its time"
	verdict

handler:
	enter_handler
	xorl %eax, %eax
	xchgq %rax, SHARED_INFO + 0x800	/* evtchn_pending[0] */
	end_of_interrupt
	leave_handler

	.section .data
	.balign 8
set_vector: .long 0, VECTOR
bind_timer: .long 0, 0, 0, 0
poll:	.quad 0
	.long 0, 0
timeout: .quad 0
	.section .bss
