/*
 * Event channels over the 2-level ABI: an IPI port raises the upcall vector; a masked port stays silent until it is
 * unmasked, and is then delivered once; VIRQ_TIMER comes from the single-shot timer; a poll ends with either.
 */
#include "guest.inc"
#include "events.inc"
main:
	xorl %r15d, %r15d
	call lapic_on
	call prepare_for_events
#ifdef CALLBACK
	movl $0x835, %ecx		/* LINT0 masked, as Linux leaves it */
	movl $0x10700, %eax
	xorl %edx, %edx
	wrmsr
	xorl %edi, %edi
	movl $callback, %esi
	hypercall HVM_OP
	expect 0, "HVM_PARAM_CALLBACK_IRQ"
#else
	movl $23, %edi
	movl $set_vector, %esi
	hypercall HVM_OP
	expect 0, "set_evtchn_upcall_vector"
#endif
	movl $7, %edi
	movl $bind_ipi, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "bind_ipi"
	movl bind_ipi + 4, %eax
	movl %eax, port
	sti

	/* Sent and delivered. */
	movl $4, %edi
	movl $port, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "send"
	call wait_for_upcall
	/* Masked: pending, but silent. */
	movl port, %ecx
	lock btsq %rcx, SHARED_INFO + 0xa00
	movq $0, seen
	movl $4, %edi
	movl $port, %esi
	hypercall EVENT_CHANNEL_OP
	movl $0x100000, %ecx
1:	pause
	loop 1b
	movq seen, %rax
	expect 0, "masked port stays silent"
	/* Unmasked: delivered. */
	movl $9, %edi
	movl $port, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "unmask"
	call wait_for_upcall
	/* The timer: its own port, at a system time of 1 ns, long past. */
	movl $1, %edi
	movl $bind_timer, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "bind_virq"
	movl $8, %edi
	xorl %esi, %esi
	movl $singleshot, %edx
	hypercall VCPU_OP
	expect 0, "set_singleshot_timer"
	call wait_for_upcall
	/* Polled for with interrupts off and the port masked: the timer ends it, and so does its own time-out. */
	cli
	movl bind_timer + 8, %r12d
	lock btsq %r12, SHARED_INFO + 0xa00
	lock btrq %r12, SHARED_INFO + 0x800
	call now
	addq $50000000, %rax
	movq %rax, singleshot
	movl $8, %edi
	xorl %esi, %esi
	movl $singleshot, %edx
	hypercall VCPU_OP
	expect 0, "set_singleshot_timer for poll"
1:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "poll"
	lock btrq %r12, SHARED_INFO + 0x800
	jnc 1b				/* a poll may end early; without the timer's event this would go on for good */
	call now
	addq $30000000, %rax
	movq %rax, poll + 16
2:	movl $3, %edi
	movl $poll, %esi
	hypercall SCHED_OP
	expect 0, "poll with a time-out"
	call now
	cmpq poll + 16, %rax
	jb 2b
	sti
	/* Closed ports and wrong ones are refused. */
	movl $3, %edi
	movl $port, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "close"
	movl $4, %edi
	movl $port, %esi
	hypercall EVENT_CHANNEL_OP
	expect -22, "send on a closed port"
	verdict

/* %rax = the system time, ns: when the vCPU, which runs, was last seen to run. */
now:
	movl $4, %edi
	xorl %esi, %esi
	movl $runstate, %edx
	hypercall VCPU_OP
	movq runstate + 8, %rax
	ret

/* Wait for the handler to have run, for some 8 s of system time, which is looked at every 2^27 cycles. */
wait_for_upcall:
	movq $0, since
1:	call cycles
	leaq 0x8000000(%rax), %rbx
2:	cmpq $0, seen
	jne 3f
	pause
	call cycles
	cmpq %rbx, %rax
	jb 2b
	call now
	cmpq $0, since
	jne 4f
	movq %rax, since
4:	subq since, %rax
	movabsq $8000000000, %rcx
	cmpq %rcx, %rax
	jb 1b
	say "FAIL no upcall came\n"
	jmp power_off
3:	movq $0, seen
	ret

cycles:
	rdtsc
	shlq $32, %rdx
	orq %rdx, %rax
	ret

handler:
	enter_handler
	xorl %eax, %eax
	xchgq %rax, SHARED_INFO + 0x800	/* evtchn_pending[0] */
	testq %rax, %rax		/* a vector alone, as after it was set, is no event */
	jz 1f
	incq seen
1:
#ifndef CALLBACK			/* which must not be acknowledged */
	end_of_interrupt
#endif
	leave_handler

	.section .data
	.balign 8
seen: .quad 0
since: .quad 0
port: .long 0, 0
set_vector: .long 0, VECTOR
callback: .short 0x7ff0, 0
	.long 0
	.quad 2 << 56 | VECTOR
bind_ipi: .long 0, 0
bind_timer: .long 0, 0, 0, 0
singleshot: .quad 1, 0
poll: .quad bind_timer + 8, 1, 0
	.section .bss
	.balign 8
runstate: .space 48
	.section .bss
