/*
 * What a dom0 pays to see another domain's memory, in TSC cycles a call, a line each: xen_version, to compare with; mapping
 * and unmapping 1, 32 and 512 grants (references from 8 on, of domain 1); mapping 1,024 foreign pages (gfns from 0x2000
 * on), and removing one.  What is mapped begins with its number.
 */
#include "guest.inc"
#define PLACE 0x90000
#define SOURCE 0x2000
#define FIRST_REF 8
#define FOREIGN 1024
#define ROUNDS 16
main:
	call tsc
	movq %rax, %r13
	movl $ROUNDS * 16, %ebp
1:	xorl %edi, %edi
	hypercall XEN_VERSION
	decl %ebp
	jnz 1b
	call tsc
	subq %r13, %rax
	shrq $8, %rax
	movb $10, %dl
	call print_hex
	movl $1, %r12d
	call grants
	movl $32, %r12d
	call grants
	movl $512, %r12d
	call grants
	call foreign
	verdict

/* Map and unmap %r12 grants, ROUNDS times; print both times. */
grants:
	xorl %r14d, %r14d			/* cycles spent mapping, and unmapping */
	xorl %r15d, %r15d
	movl $ROUNDS, %ebp
again:	xorl %ecx, %ecx
1:	movl %ecx, %eax				/* struct gnttab_map_grant_ref, 32 bytes each */
	shll $5, %eax
	leal PLACE(%rcx), %edx
	shlq $12, %rdx
	movq %rdx, maps(%rax)
	movl $2, maps + 8(%rax)			/* GNTMAP_host_map */
	leal FIRST_REF(%rcx), %edx
	movl %edx, maps + 12(%rax)
	movw $1, maps + 16(%rax)
	incl %ecx
	cmpl %r12d, %ecx
	jne 1b
	call tsc
	movq %rax, %r13
	xorl %edi, %edi
	movl $maps, %esi
	movl %r12d, %edx
	hypercall GRANT_TABLE_OP
	expect 0, "map_grant_ref"
	call tsc
	subq %r13, %rax
	addq %rax, %r14
	xorl %ebx, %ebx
2:	movl %ebx, %ecx
	shll $5, %ecx
	movswl maps + 18(%rcx), %eax
	expect 0, "status of a mapping"
	movl %ebx, %ecx
	shll $5, %ecx
	imull $24, %ebx, %edx			/* struct gnttab_unmap_grant_ref */
	movq maps(%rcx), %rax
	movq %rax, unmaps(%rdx)
	movq $0, unmaps + 8(%rdx)
	movl maps + 20(%rcx), %eax
	movl %eax, unmaps + 16(%rdx)
	movl %ebx, %eax
	addl $PLACE, %eax
	shlq $12, %rax
	movl (%rax), %eax			/* what the granter has put there */
	subl %ebx, %eax
	expect FIRST_REF, "content"
	incl %ebx
	cmpl %r12d, %ebx
	jne 2b
	call tsc
	movq %rax, %r13
	movl $1, %edi
	movl $unmaps, %esi
	movl %r12d, %edx
	hypercall GRANT_TABLE_OP
	expect 0, "unmap_grant_ref"
	call tsc
	subq %r13, %rax
	addq %rax, %r15
	movswl unmaps + 20, %eax
	expect 0, "status of an unmapping"
	movl PLACE << 12, %eax
	expect 0, "content after unmapping"
	decl %ebp
	jnz again
	movq %r14, %rax
	shrq $4, %rax
	movb $10, %dl
	call print_hex
	movq %r15, %rax
	shrq $4, %rax
	movb $10, %dl
	call print_hex
	ret

/* Map FOREIGN pages at once and remove them one by one; print the time of the call, and of one removal. */
foreign:
	xorl %ecx, %ecx
1:	leal SOURCE(%rcx), %eax
	movq %rax, indices(, %rcx, 8)
	leal PLACE(%rcx), %eax
	movq %rax, places(, %rcx, 8)
	incl %ecx
	cmpl $FOREIGN, %ecx
	jne 1b
	call tsc
	movq %rax, %r13
	movl $23, %edi				/* XENMEM_add_to_physmap_batch */
	movl $batch, %esi
	hypercall MEMORY_OP
	expect 0, "add_to_physmap_batch"
	call tsc
	subq %r13, %rax
	movb $10, %dl
	call print_hex
	xorl %ebx, %ebx
2:	movl errors(, %rbx, 4), %eax
	expect 0, "errno of a page"
	movl %ebx, %eax
	addl $PLACE, %eax
	shlq $12, %rax
	movl (%rax), %eax
	subl %ebx, %eax
	expect FIRST_REF, "content of a foreign page"
	incl %ebx
	cmpl $FOREIGN, %ebx
	jne 2b
	call tsc
	movq %rax, %r13
	xorl %ebx, %ebx
3:	movl $15, %edi				/* XENMEM_remove_from_physmap */
	leal PLACE(%rbx), %eax
	movq %rax, removal + 8
	movl $removal, %esi
	hypercall MEMORY_OP
	expect 0, "remove_from_physmap"
	incl %ebx
	cmpl $FOREIGN, %ebx
	jne 3b
	call tsc
	subq %r13, %rax
	shrq $10, %rax
	movb $10, %dl
	call print_hex
	ret

	.section .data
	.balign 8
batch:	.word 0x7ff0, 4, FOREIGN, 1		/* DOMID_SELF, XENMAPSPACE_gmfn_foreign, size, domain 1 */
	.quad indices, places, errors
removal: .word 0x7ff0, 0, 0, 0
	.quad 0
	.section .bss
	.balign 4096
maps:	.space 512 * 32
unmaps:	.space 512 * 24
indices: .space FOREIGN * 8
places:	.space FOREIGN * 8
errors:	.space FOREIGN * 4
