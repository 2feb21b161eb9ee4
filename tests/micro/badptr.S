/*
 * Every hypercall argument that is a pointer, given: an address that no page table maps, one that straddles the end of
 * RAM, a non-canonical one, one in the hole where nothing is, and the last byte of the address space.  All -EFAULT.
 *
 * The test gives this guest 64 MiB.
 */
#include "guest.inc"
main:
	movq $calls, %r12
call:
	movq $addresses, %r13
address:
	movq (%r13), %rbx
	/* Put the bad address where this call has its pointer. */
	movq 8(%r12), %rdi
	movq 16(%r12), %rsi
	movq 24(%r12), %rdx
	movl (%r12), %eax
	movl 4(%r12), %ecx
	cmpl $1, %ecx
	cmoveq %rbx, %rsi
	cmpl $2, %ecx
	cmoveq %rbx, %rdx
	cmpl $0, %ecx
	cmoveq %rbx, %rdi
	shll $5, %eax
	addq $hypercall_page, %rax
	call *%rax
	cmpq $-EFAULT, %rax
	je good
	pushq %rax
	say "FAIL hypercall, command, address, result: "
	movl (%r12), %eax
	movb $32, %dl
	call print_hex
	movq 8(%r12), %rax
	movb $32, %dl
	call print_hex
	movq (%r13), %rax
	movb $32, %dl
	call print_hex
	popq %rax
	movb $10, %dl
	call print_hex
	incl failures
good:
	addq $8, %r13
	cmpq $addresses_end, %r13
	jne address
	addq $32, %r12
	cmpq $calls_end, %r12
	jne call
	cmpl $0, failures
	jne power_off
	verdict

	.section .data
	.balign 8
failures: .quad 0
addresses:
	.quad 0x0000000200000000	/* mapped by no table */
	.quad 0x0000000004000000 - 1	/* straddles the end of RAM */
	.quad 0x0000800000000000	/* not canonical */
	.quad 0xffff7fffffffffff	/* not canonical, from above */
	.quad 0x00000000e0000000	/* the hole: mapped, but no memory */
	.quad 0xffffffffffffffff
addresses_end:
/* hypercall, which argument is the pointer, then the arguments */
.macro try number, pointer, first, second=0, third=64
	.long \number, \pointer
	.quad \first, \second, \third
.endm
calls:
	try XEN_VERSION, 1, 1
	try XEN_VERSION, 1, 2
	try XEN_VERSION, 1, 3
	try XEN_VERSION, 1, 4
	try XEN_VERSION, 1, 5
	try XEN_VERSION, 1, 6
	try XEN_VERSION, 1, 8
	try XEN_VERSION, 1, 9
	try CONSOLE_IO, 2, 0, 64
	try SCHED_OP, 1, 2
	try SCHED_OP, 1, 5
	try MEMORY_OP, 1, 3
	try MEMORY_OP, 1, 4
	try MEMORY_OP, 1, 7
	try MEMORY_OP, 1, 9
	try MEMORY_OP, 1, 14
	try MEMORY_OP, 1, 15
	try MEMORY_OP, 1, 23
	try HVM_OP, 1, 0
	try HVM_OP, 1, 1
	try HVM_OP, 1, 23
	try EVENT_CHANNEL_OP, 1, 0
	try EVENT_CHANNEL_OP, 1, 1
	try EVENT_CHANNEL_OP, 1, 3
	try EVENT_CHANNEL_OP, 1, 4
	try EVENT_CHANNEL_OP, 1, 5
	try EVENT_CHANNEL_OP, 1, 6
	try EVENT_CHANNEL_OP, 1, 7
	try EVENT_CHANNEL_OP, 1, 8
	try EVENT_CHANNEL_OP, 1, 9
	try EVENT_CHANNEL_OP, 1, 10
	try GRANT_TABLE_OP, 1, 6, 0, 1
	try GRANT_TABLE_OP, 1, 8
	try GRANT_TABLE_OP, 1, 10
	try VCPU_OP, 2, 4
	try VCPU_OP, 2, 5
	try VCPU_OP, 2, 6
	try VCPU_OP, 2, 8
	try VCPU_OP, 2, 10
	try MULTICALL, 0, 0, 1
calls_end:
