/*
 * A front end that does whatever its command line's first eight characters, taken as a seed, make it do: it grants sixteen
 * pages, leaves two event channels for a back end, waits until it is told that it is connected, and then writes words into
 * the pages while the back end reads them, moves the ring's indices, and rings.
 *
 * Pages 0 and 1 are the rings.  References 8 to 23 are the pages, every fourth for reading alone; 24 is a page that is not
 * there; what follows is not granted.
 */
#include "guest.inc"
#define PAGES 0x400000
#define TABLE 0x300000
#define GO 0x310000
#define FIRST_REF 8
#define ROUNDS 300
#define STORES 8
main:
	movq 24(%rbx), %rax
	movq (%rax), %r12			/* the state of the generator */
	movl $0, GO
	movl $7, %edi				/* XENMEM_add_to_physmap */
	movl $placement, %esi
	hypercall MEMORY_OP
	expect 0, "add_to_physmap"
	xorl %ecx, %ecx
1:	movl $1, %eax				/* GTF_permit_access, to domain 0 */
	testl $3, %ecx
	jnz 2f
	orl $4, %eax				/* GTF_readonly */
2:	cmpl $2, %ecx
	jae 3f
	andl $~4, %eax
3:	movl %eax, TABLE + 8 * FIRST_REF(, %rcx, 8)
	leal PAGES >> 12(%rcx), %eax
	movl %eax, TABLE + 8 * FIRST_REF + 4(, %rcx, 8)
	incl %ecx
	cmpl $16, %ecx
	jne 1b
	movl $1, TABLE + 8 * 24
	movl $0xfffff, TABLE + 8 * 24 + 4
	movl $6, %edi				/* EVTCHNOP_alloc_unbound */
	movl $first, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "alloc_unbound"
	movl $6, %edi
	movl $second, %esi
	hypercall EVENT_CHANNEL_OP
	expect 0, "alloc_unbound"
	movl first + 4, %eax
	movl %eax, bell_of_first
	movb $10, %dl
	call print_hex
	movl second + 4, %eax
	movl %eax, bell_of_second
	movb $10, %dl
	call print_hex
	say "ready\n"
4:	pause
	cmpl $0, GO
	je 4b
	movl $ROUNDS, %ebp
round:	movl $STORES, %r13d
5:	call random
	movl %eax, %ecx
	andl $0x3ffc, %ecx			/* mostly in the first pages */
	testl $0x8000, %eax
	jz 6f
	movl %eax, %ecx
	andl $0xfffc, %ecx
6:	call random
	movl %eax, %edx
	shrl $8, %edx
	andl $3, %eax
	jz small
	cmpl $1, %eax
	je store
	cmpl $2, %eax
	je offset
	andl $15, %edx				/* a reference that is good */
	addl $FIRST_REF, %edx
	jmp store
small:	andl $31, %edx
	jmp store
offset:	andl $0xfff, %edx
store:	movl %edx, PAGES(%rcx)
	decl %r13d
	jnz 5b
	call random
	movl $PAGES, %ecx
	call move_index
	movl $PAGES + 0x1000, %ecx
	call move_index
	movl $4, %edi				/* EVTCHNOP_send */
	movl $bell_of_first, %esi
	hypercall EVENT_CHANNEL_OP
	movl $4, %edi
	movl $bell_of_second, %esi
	hypercall EVENT_CHANNEL_OP
	decl %ebp
	jnz round
	verdict

/* Move the request index of the ring at %rcx: a little forward, mostly. */
move_index:
	call random
	movl %eax, %edx
	shrl $8, %edx
	testl $0x3f, %eax
	jz 7f
	andl $7, %edx
	addl (%rcx), %edx
7:	movl %edx, (%rcx)
	ret

/* %rax = the next number (xorshift). */
random:	movq %r12, %rax
	shlq $13, %rax
	xorq %rax, %r12
	movq %r12, %rax
	shrq $7, %rax
	xorq %rax, %r12
	movq %r12, %rax
	shlq $17, %rax
	xorq %rax, %r12
	movq %r12, %rax
	shrq $16, %rax
	ret

	.section .data
	.balign 8
placement:
	.word 0x7ff0, 0				/* DOMID_SELF */
	.long 1					/* XENMAPSPACE_grant_table */
	.quad 0, TABLE >> 12
first:	.word 0x7ff0, 0
	.long 0
second:	.word 0x7ff0, 0
	.long 0
bell_of_first: .long 0
bell_of_second: .long 0
