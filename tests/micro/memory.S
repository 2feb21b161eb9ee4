/* The memory map by hypercall is the one in start_info; memory above 4 GiB is where the map says, and can be used. */
#include "guest.inc"
#define ENTRIES 32
main:
	movq %rbx, %r12
	movl $ENTRIES, map_call
	movq $map, map_call + 8
	movl $9, %edi
	movl $map_call, %esi
	hypercall MEMORY_OP
	expect 0, "memory_map"
	movl map_call, %eax
	movl 48(%r12), %ecx		/* memmap_entries */
	subl %ecx, %eax
	expect 0, "number of entries"
	movq 40(%r12), %r13		/* memmap_paddr */
	movq $map, %r14
	movl map_call, %r15d
1:	movq (%r13), %rax
	movb $32, %dl
	call print_hex
	movq 8(%r13), %rax
	movb $32, %dl
	call print_hex
	movl 16(%r13), %eax
	movb $10, %dl
	call print_hex
	movq (%r13), %rax
	subq (%r14), %rax
	expect 0, "start"
	movq 8(%r13), %rax
	subq 8(%r14), %rax
	expect 0, "size"
	movl 16(%r13), %eax
	subl 16(%r14), %eax
	expect 0, "type"
	addq $24, %r13
	addq $20, %r14
	decl %r15d
	jnz 1b
	/* Map 4 GiB and up over the second GiB of addresses and use it, if the guest has so much. */
	cmpl $6, map_call
	jb 2f
	movq $0x100000083, %rax
	movq %rax, directories + 0x1000
	movq %cr3, %rax
	movq %rax, %cr3
	movq $0x1234567890abcdef, %rax
	movq %rax, 0x40000000
	movq 0x40000000, %rax
	expect 0x1234567890abcdef, "memory above 4 GiB"
2:	verdict
	.section .data
	.balign 8
map_call: .long 0, 0
	.quad 0
	.section .bss
	.balign 8
map: .space ENTRIES * 20
