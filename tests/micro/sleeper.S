/*
 * Sleeps a hundred milliseconds at a time for good, as an idle kernel does: the clock from vcpu_time_info, the vCPU's
 * single-shot timer, hlt.
 */
#include "guest.inc"
#include "events.inc"
#include "clock.inc"
#define PERIOD_NS 100000000
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
	say "asleep\n"
1:	call now
	addq $PERIOD_NS, %rax
	movq %rax, singleshot
	cli
	movl $8, %edi
	xorl %esi, %esi
	movl $singleshot, %edx
	hypercall VCPU_OP
	sti
	hlt
	jmp 1b

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
singleshot: .quad 0, 0
	.section .bss
