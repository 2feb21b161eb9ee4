/* User code that calls through the hypercall page, with all I/O ports open to it, gets -EPERM and nothing else. */
#include "guest.inc"
main:
	/* A task state with a ring 0 stack, and gate 0x80 by which user code comes back. */
	movq $kernel_stack, task_state + 4
	movw $103, descriptor_table + 0x30
	movl $task_state, %eax
	movw %ax, descriptor_table + 0x32
	shrl $16, %eax
	movb %al, descriptor_table + 0x34
	movb $0x89, descriptor_table + 0x35
	movl $0x30, %eax
	ltr %ax
	movq $back, %rax
	movw %ax, table + 0x80 * 16
	movw $8, table + 0x80 * 16 + 2
	movw $0xee00, table + 0x80 * 16 + 4
	shrq $16, %rax
	movw %ax, table + 0x80 * 16 + 6
	lidt table_pointer
	pushq $0x23			/* ss */
	pushq $user_stack_top
	pushq $0x3002			/* IOPL 3 */
	pushq $0x2b			/* cs */
	pushq $user
	iretq
user:
	movl $0, %edi
	hypercall XEN_VERSION
	movq %rax, user_result
	movl $2, %edi			/* a shutdown from user space must not happen */
	movl $shutdown_poweroff, %esi
	hypercall SCHED_OP
	movq %rax, user_result + 8
	int $0x80
back:
	movq user_result, %rax
	expect -EPERM, "xen_version from CPL 3"
	movq user_result + 8, %rax
	expect -EPERM, "sched_op from CPL 3"
	movl $0, %edi
	hypercall XEN_VERSION
	expect 0x40011, "xen_version from CPL 0 afterwards"
	verdict
	.section .data
table_pointer:
	.word 4095
	.quad table
	.section .bss
	.balign 16
table: .space 4096
task_state: .space 104
user_result: .quad 0, 0
	.balign 16
	.space 1024
kernel_stack:
	.space 1024
user_stack_top:
