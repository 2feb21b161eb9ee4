/* Print 64 KiB of x by console_io 1,600 times: 100 MiB. */
#include "guest.inc"
main:
	movl $1600, %ebp
	leaq buffer, %rdi
	movl $0x10000, %ecx
	movb $'x', %al
	rep stosb
1:	movl $0x10000, %esi
	leaq buffer, %rdx
	call print_bytes
	decl %ebp
	jnz 1b
	verdict

	.section .bss
buffer: .space 0x10000
