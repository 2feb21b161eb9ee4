/* Print what Xen's hypercall-page MSR, IA32_MCG_CAP and the sizes of addresses (CPUID 0x80000008) read as; then read one
   of KVM's clock MSRs, which Xen does not have: #GP. */
#include "guest.inc"
.macro show msr, after
	movl $\msr, %ecx
	rdmsr
	shlq $32, %rdx
	orq %rdx, %rax
	movb $\after, %dl
	call print_hex
.endm
main:
	show HYPERCALL_MSR, 32
	show 0x179, 32
	movl $0x80000008, %eax
	cpuid
	movl %eax, %eax
	movb $10, %dl
	call print_hex
	leaq general_protection, %rax
	movw %ax, interrupt_table + 13 * 16
	movw $8, interrupt_table + 13 * 16 + 2
	movw $0x8e00, interrupt_table + 13 * 16 + 4
	shrl $16, %eax
	movw %ax, interrupt_table + 13 * 16 + 6
	lidt interrupt_table_pointer
	movl $0x11, %ecx
	rdmsr
	say "the clock of KVM can be read\n"
	jmp power_off
general_protection:
	verdict

	.section .data
interrupt_table_pointer:
	.word 14 * 16 - 1
	.quad interrupt_table
	.balign 16
interrupt_table: .space 14 * 16
