/* Print the modules that start_info lists: size, content, command line; then the kernel's command line. */
#include "guest.inc"
main:
	movq %rbx, %r12
	movl (%r12), %eax
	expect 0x336ec578, "magic"
	movl 4(%r12), %eax
	expect 1, "version"
	movl 12(%r12), %r13d		/* nr_modules */
	movq 16(%r12), %r14		/* modlist_paddr */
1:	testl %r13d, %r13d
	jz 2f
	movq 8(%r14), %rax
	movb $58, %dl
	call print_hex
	movq (%r14), %rdx
	movq 8(%r14), %rsi
	call print_bytes
	movq 16(%r14), %rdx
	call print_text
	addq $32, %r14
	decl %r13d
	jmp 1b
2:	movq 24(%r12), %rdx
	call print_text
	verdict

/* Print the zero-ended text at %rdx, if any, in brackets. */
print_text:
	testq %rdx, %rdx
	jz 2f
	pushq %rdx
	say "["
	popq %rdx
	xorl %esi, %esi
1:	cmpb $0, (%rdx, %rsi)
	je 1f
	incl %esi
	jmp 1b
1:	call print_bytes
	say "]\n"
2:	ret
