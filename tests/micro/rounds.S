/*
 * How long things take, in TSC cycles a piece, a line each: a hypercall that does nothing; an event that the other end of
 * a channel sends back; with two vCPUs, an IPI to the other and one back.  The echo is the host's: it connects to port 4.
 */
#include "guest.inc"
#include "events.inc"
#define ROUNDS 2000
main:
	call prepare_for_events
	xorl %r15d, %r15d
	call ready_for_events
	movl port_of_0, %eax
	expect 3, "the IPI's port"
	/* A channel for the host to connect to. */
	movl $6, %edi
	movl $alloc_unbound, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "alloc_unbound"
	movl alloc_unbound + 4, %eax
	movl %eax, echo_port
	expect 4, "the echo's port"
	say "connect\n"
	sti
wait_for_echo:
	movl $4, %edi
	movl $echo_port, %esi
	hypercall EVENT_CHANNEL_OP
	cmpq $0, seen_by_0
	je wait_for_echo

	call tsc
	movq %rax, %r12
	movl $ROUNDS, %ebx
1:	xorl %edi, %edi
	xorl %esi, %esi
	hypercall XEN_VERSION
	decl %ebx
	jnz 1b
	call print_time

	movq $0, seen_by_0
	call tsc
	movq %rax, %r12
	xorl %ebx, %ebx
2:	movl $4, %edi
	movl $echo_port, %esi
	hypercall EVENT_CHANNEL_OP
	incq %rbx
	call wait_for_event
	cmpl $ROUNDS, %ebx
	jne 2b
	call print_time

	movl $3, %edi			/* VCPUOP_is_up: is there a second vCPU? */
	movl $1, %esi
	hypercall VCPU_OP
	cmpq $-2, %rax
	je done
	movl $1, context
	movq $second, context + 8 + 64
	movl $0x80050033, context + 8 + 80
	movq $top_level, context + 8 + 88
	movq $0x20, context + 8 + 96
	movq $0x500, context + 8 + 104
	xorl %edi, %edi
	movl $1, %esi
	movl $context, %edx
	hypercall VCPU_OP
	expect 0, "initialise"
	movl $1, %edi
	movl $1, %esi
	hypercall VCPU_OP
	expect 0, "up"
3:	pause
	cmpb $0, second_is_ready
	je 3b
	movq $0, seen_by_0
	call tsc
	movq %rax, %r12
	xorl %ebx, %ebx
4:	movl $4, %edi
	movl $port_of_1, %esi
	hypercall EVENT_CHANNEL_OP
	incq %rbx
	call wait_for_event
	cmpl $ROUNDS, %ebx
	jne 4b
	call print_time
done:
	verdict

/* Sleep until vCPU 0 has seen %rbx events. */
wait_for_event:
	cli
	cmpq %rbx, seen_by_0
	jae 1f
	sti
	hlt
	jmp wait_for_event
1:	sti
	ret

/* Print the cycles since %r12 over ROUNDS. */
print_time:
	call tsc
	subq %r12, %rax
	xorl %edx, %edx
	movl $ROUNDS, %ecx
	divq %rcx
	movb $10, %dl
	jmp print_hex

/* vCPU %r15 gets its vector and its IPI port. */
ready_for_events:
	vector_and_ipi_port
	movl bind_ipi + 4, %eax
	movl %eax, port_of_0(, %r15, 4)
	ret

second:
	movq $second_stack, %rsp
	own_segments
	movl $1, %r15d
	call ready_for_events
	movb $1, second_is_ready
2:	sti
	hlt
	jmp 2b

handler:
	enter_handler
	pushq %rsi
	pushq %rdi
	end_of_interrupt
	testl %r15d, %r15d
	jnz 2f
	movl port_of_0, %ecx
	lock btrq %rcx, SHARED_INFO + 0x800
	jc 1f
	movl echo_port, %ecx
	lock btrq %rcx, SHARED_INFO + 0x800
	jnc 3f
1:	incq seen_by_0
	jmp 3f
2:	movl port_of_1, %ecx
	lock btrq %rcx, SHARED_INFO + 0x800
	jnc 3f
	movl $4, %edi			/* and back */
	movl $port_of_0, %esi
	hypercall EVENT_CHANNEL_OP
3:	popq %rdi
	popq %rsi
	leave_handler

	.section .data
	.balign 8
seen_by_0: .quad 0
port_of_0: .long 0
port_of_1: .long 0
echo_port: .long 0, 0
second_is_ready: .long 0, 0
set_vector: .long 0, VECTOR
bind_ipi: .long 0, 0
alloc_unbound: .short 0x7ff0, 0
	.long 0
	.section .bss
	.balign 16
context: .space 128
	.space 4096
second_stack:
