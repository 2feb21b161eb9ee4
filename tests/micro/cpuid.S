/* Print leaves 0x40000000 to 0x40000005, sub-leaves 0 to 2: EAX, EBX, ECX, EDX a line. */
#include "guest.inc"
main:
	movl $0x40000000, %r12d
leaf:
	xorl %r13d, %r13d
subleaf:
	movl %r12d, %eax
	movl %r13d, %ecx
	cpuid
	movl %ebx, %r14d
	movl %ecx, %r15d
	pushq %rdx
	pushq %r15
	pushq %r14
	pushq %rax
	movl %r12d, %eax
	movb $46, %dl
	call print_hex
	movl %r13d, %eax
	movb $58, %dl
	call print_hex
	.irp after, 32, 32, 32, 10
	popq %rax
	movl %eax, %eax
	movb $\after, %dl
	call print_hex
	.endr
	incl %r13d
	cmpl $3, %r13d
	jne subleaf
	incl %r12d
	cmpl $0x40000006, %r12d
	jne leaf
	verdict
