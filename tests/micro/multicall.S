/* A long multicall with good, unknown and nested entries; every result must be there, in a list that gives way often. */
#include "guest.inc"
#define ENTRIES 10000
main:
	movq $list, %rdi
	movl $ENTRIES, %ecx
1:	movq $XEN_VERSION, (%rdi)
	movq $0, 16(%rdi)
	movq $0x7777, 8(%rdi)
	addq $64, %rdi
	decl %ecx
	jnz 1b
	movq $63, list + 64		/* no such hypercall */
	movq $MULTICALL, list + 128	/* not inside itself */
	movq $list, %rdi
	movl $ENTRIES, %esi
	hypercall MULTICALL
	expect 0, "multicall"
	movq list + 8, %rax
	expect 0x40011, "first result"
	movq list + 64 + 8, %rax
	expect -ENOSYS, "unknown hypercall"
	movq list + 128 + 8, %rax
	expect -22, "nested multicall"
	movq $list + 192, %r12
	movl $ENTRIES - 3, %r13d
1:	movq 8(%r12), %rax
	expect 0x40011, "a later result"
	addq $64, %r12
	decl %r13d
	jnz 1b
	verdict
	.section .bss
	.balign 64
list: .space ENTRIES * 64
