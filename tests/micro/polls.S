/*
 * SCHEDOP_poll with a timeout, which is a system time: one that has come sleeps no longer, and one that is to come does not
 * sleep far beyond it.  It may be answered early; who polls looks again.
 */
#include "guest.inc"
#include "events.inc"
#include "clock.inc"
#define TRIES 300
#define UP_NS 3000000000
#define AHEAD_NS 20000000
#define LATE_NS 1500000000
main:
	call prepare_for_timer

	movq $1, timeout
	movl $TRIES, %r13d
1:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "a poll whose time has come"
	decl %r13d
	jnz 1b

	/* A little ahead each time, until the guest has been up for longer than a poll may be late. */
	movq $UP_NS, %r12
2:	call now
	movq %rax, %r14
	addq $AHEAD_NS, %rax
	movq %rax, timeout
3:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "a poll whose time is to come"
	call now
	cmpq timeout, %rax
	jb 3b
	movq %rax, %r13
	subq timeout, %rax
	movl $LATE_NS, %ecx
	cmpq %rcx, %rax
	setae %al
	movzbl %al, %eax
	expect 0, "a poll sleeps far beyond its time"
	cmpq %r12, %r14
	jb 2b
	verdict

	.section .data
	.balign 8
poll:	.quad 0
	.long 0, 0
timeout: .quad 0
	.section .bss
