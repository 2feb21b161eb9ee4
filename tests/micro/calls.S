/*
 * What hypercalls cost, in TSC cycles a piece, a line each: xen_version, an event sent to a masked port, the single-shot
 * timer; each by vCPU 0 alone and then by all vCPUs at once.
 */
#include "guest.inc"
#include "events.inc"
#define ROUNDS 2000
#define PHASES 6
main:
	call prepare_for_events
	xorl %r15d, %r15d
	call ready
	movl $1, %r12d			/* how many vCPUs there are */
1:	movl $3, %edi			/* VCPUOP_is_up */
	movl %r12d, %esi
	hypercall VCPU_OP
	cmpq $-2, %rax
	je all_started
	call start
	incl %r12d
	jmp 1b
all_started:
	xorl %r14d, %r14d
next_phase:
	incl %r14d
	cmpl $PHASES, %r14d
	ja done
	movl $0, finished
	call tsc
	movq %rax, %r13
	movl %r14d, phase
	call work
	lock incl finished
	movl $1, %ecx
	testl $1, %r14d
	cmovzl %r12d, %ecx
2:	pause
	cmpl %ecx, finished
	jne 2b
	call tsc
	subq %r13, %rax
	xorl %edx, %edx
	movl $ROUNDS, %ecx
	divq %rcx
	movb $10, %dl
	call print_hex
	jmp next_phase
done:
	verdict

/* Start vCPU %r12. */
start:
	movl $1, context
	movq $second, context + 8 + 64
	imulq $256, %r12, %rax
	addq $stacks + 256, %rax
	movq %rax, context + 8 + 32
	movq %r12, context + 8 + 48
	movl $0x80050033, context + 8 + 80
	movq $top_level, context + 8 + 88
	movq $0x20, context + 8 + 96
	movq $0x500, context + 8 + 104
	movb $0, is_ready
	xorl %edi, %edi
	movl %r12d, %esi
	movl $context, %edx
	hypercall VCPU_OP
	expect 0, "initialise"
	movl $1, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 0, "up"
1:	pause
	cmpb $0, is_ready
	je 1b
	ret

second:
	movl %esi, %r15d
	own_segments
	call ready
	movb $1, is_ready
	xorl %r14d, %r14d
1:	pause
	movl phase, %eax
	cmpl %r14d, %eax
	je 1b
	movl %eax, %r14d
	testl $1, %r14d
	jnz 1b				/* vCPU 0 alone */
	call work
	lock incl finished
	jmp 1b

/* ROUNDS hypercalls of phase %r14 by vCPU %r15. */
work:
	movl $ROUNDS, %ebp
	cmpl $2, %r14d
	jbe by_version
	cmpl $4, %r14d
	jbe by_send
1:	movl $8, %edi
	movl %r15d, %esi
	movl $far, %edx
	hypercall VCPU_OP
	decl %ebp
	jnz 1b
	ret
by_send:
	movl $4, %edi
	leaq ports(, %r15, 4), %rsi
	hypercall EVENT_CHANNEL_OP
	decl %ebp
	jnz by_send
	ret
by_version:
	xorl %edi, %edi
	xorl %esi, %esi
	hypercall XEN_VERSION
	decl %ebp
	jnz by_version
	ret

/* vCPU %r15 gets its vector, and an IPI port that is masked. */
ready:
	vector_and_ipi_port
	movl bind_ipi + 4, %ecx
	movl %ecx, ports(, %r15, 4)
	lock btsq %rcx, SHARED_INFO + 0xa00
	movl %r15d, bind_timer + 4
	movl $1, %edi
	movl $bind_timer, %esi
	hypercall EVENT_CHANNEL_OP
	ret

handler:
	enter_handler
	end_of_interrupt
	leave_handler

	.section .data
	.balign 8
far: .quad 0x7000000000000000, 0
phase: .long 0
finished: .long 0
is_ready: .long 0, 0
ports: .space 4 * 32
set_vector: .long 0, VECTOR
bind_ipi: .long 0, 0
bind_timer: .long 0, 0, 0, 0
	.section .bss
	.balign 16
context: .space 128
stacks: .space 256 * 33
