/*
 * Sleeps a hundred milliseconds at a time for good, as an idle kernel does: the clock from vcpu_time_info, the vCPU's
 * single-shot timer, hlt.
 */
#include "guest.inc"
#include "events.inc"
#include "clock.inc"
#define PERIOD_NS 100000000
main:
	call prepare_for_timer
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

	.section .data
	.balign 8
singleshot: .quad 0, 0
	.section .bss
