/*
 * Carries out programs of hypercalls, CPUID and MSR accesses, and prints each result on the PV console: the same guest on
 * Xen and on pyvmm.  The programs are its first module, in the form that programs.py writes:
 *
 *	E				end
 *	P number:4			a program begins; printed as "P number"
 *	W address:4 length:2 bytes	write to memory
 *	C to:4 from:4 length:2		copy memory
 *	R address:4 length:2		a range to look at in the next call: printed where the call has changed it
 *	H number:1 5 * argument:8	a hypercall; printed as its value, then " range+offset:bytes" for each run of changed bytes
 *	Q number:1 5 * argument:8	a hypercall in silence
 *	S address:4 length:2		print memory
 *	I leaf:4 subleaf:4		CPUID; printed as EAX EBX ECX EDX
 *	M index:4			RDMSR; printed as its value, or as "gp"
 *	N index:4 value:8		WRMSR; printed as "ok" or "gp"
 *
 * Numbers are little-endian; printed ones hexadecimal, with a minus where they are negative.
 */
#include "guest.inc"

#define EVTCHN_SEND 4
#define HVM_PARAM_CONSOLE_PFN 17
#define HVM_PARAM_CONSOLE_EVTCHN 18
#define RING_SIZE 2048
#define OUT_CONS 3080
#define OUT_PROD 3084
#define RANGES 8
#define RANGE_SIZE 256

main:
	movl 16(%rbx), %eax		/* start_info: the list of modules */
	movl (%rax), %esi		/* the first one's address */
	movq %rsi, cursor
	call open_console
	call take_exceptions
next:
	movq cursor, %rbp
	movzbl (%rbp), %eax
	incq %rbp
	cmpb $'E', %al
	je end
	cmpb $'P', %al
	je begin_program
	cmpb $'W', %al
	je write_memory
	cmpb $'C', %al
	je copy_memory
	cmpb $'R', %al
	je add_range
	cmpb $'H', %al
	je call_aloud
	cmpb $'Q', %al
	je call_silently
	cmpb $'S', %al
	je show_memory
	cmpb $'I', %al
	je show_cpuid
	cmpb $'M', %al
	je read_msr
	cmpb $'N', %al
	je write_msr
	ud2

begin_program:
	call notify
	movb $'P', %al
	call put
	movl (%rbp), %eax
	addq $4, %rbp
	call put_number
	jmp end_line

write_memory:
	movl (%rbp), %edi
	movzwl 4(%rbp), %ecx
	leaq 6(%rbp), %rsi
	rep movsb
	movq %rsi, cursor
	jmp next

copy_memory:
	movl (%rbp), %edi
	movl 4(%rbp), %esi
	movzwl 8(%rbp), %ecx
	addq $10, %rbp
	movq %rbp, cursor
	rep movsb
	jmp next

add_range:
	movl range_count, %ecx
	movl (%rbp), %eax
	movl %eax, range_address(, %rcx, 4)
	movzwl 4(%rbp), %eax
	movl %eax, range_length(, %rcx, 4)
	incl range_count
	addq $6, %rbp
	movq %rbp, cursor
	jmp next

call_silently:
	call carry_out
	movl $0, range_count
	jmp next

call_aloud:
	call keep_ranges
	call carry_out
	call put_signed
	call put_changes
	movl $0, range_count
	movq cursor, %rbp
	jmp end_line

/* The hypercall at the cursor, behind its letter: %rax = its value. */
carry_out:
	movzbl (%rbp), %eax
	leaq 41(%rbp), %rcx
	movq %rcx, cursor
	movq 1(%rbp), %rdi
	movq 9(%rbp), %rsi
	movq 17(%rbp), %rdx
	movq 25(%rbp), %r10
	movq 33(%rbp), %r8
	shll $5, %eax
	addq $hypercall_page, %rax
	jmp *%rax

show_memory:
	movl (%rbp), %ebx
	movzwl 4(%rbp), %r12d
	addq $6, %rbp
	call put_bytes
	jmp end_line

show_cpuid:
	movl (%rbp), %eax
	movl 4(%rbp), %ecx
	addq $8, %rbp
	cpuid
	movl %ebx, %r12d
	movl %ecx, %r13d
	movl %edx, %r14d
	call put_number
	movl %r12d, %eax
	call put_space_number
	movl %r13d, %eax
	call put_space_number
	movl %r14d, %eax
	call put_space_number
	jmp end_line

read_msr:
	movl (%rbp), %ecx
	addq $4, %rbp
	movb $0, faulted
	rdmsr
	cmpb $0, faulted
	jne say_gp
	shlq $32, %rdx
	orq %rdx, %rax
	call put_number
	jmp end_line

write_msr:
	movl (%rbp), %ecx
	movl 4(%rbp), %eax
	movl 8(%rbp), %edx
	addq $12, %rbp
	movb $0, faulted
	wrmsr
	cmpb $0, faulted
	jne say_gp
	movb $'o', %al
	call put
	movb $'k', %al
	call put
	jmp end_line
say_gp:
	movb $'g', %al
	call put
	movb $'p', %al
	call put

end_line:
	movq %rbp, cursor
	movb $10, %al
	call put
	jmp next

end:
	call notify
	jmp power_off

/* ------------------------------------------------------------------------------------------------ ranges */

keep_ranges:
	xorl %ebx, %ebx
1:	cmpl range_count, %ebx
	je 2f
	movl range_address(, %rbx, 4), %esi
	movl range_length(, %rbx, 4), %ecx
	movl %ebx, %edi
	shll $8, %edi
	addl $kept, %edi
	rep movsb
	incl %ebx
	jmp 1b
2:	ret

/* For each run of changed bytes, " range+offset:bytes". */
put_changes:
	xorl %r13d, %r13d		/* the range */
1:	cmpl range_count, %r13d
	je 5f
	movl range_address(, %r13, 4), %ebx
	movl %r13d, %r14d
	shll $8, %r14d
	addl $kept, %r14d
	xorl %r15d, %r15d		/* the place in it */
	xorl %ebp, %ebp			/* whether the byte before has changed */
2:	cmpl range_length(, %r13, 4), %r15d
	je 4f
	movb (%rbx, %r15), %al
	cmpb (%r14, %r15), %al
	movl $0, %eax
	je 3f
	testl %ebp, %ebp
	jnz 6f
	movb $' ', %al
	call put
	movl %r13d, %eax
	call put_number
	movb $'+', %al
	call put
	movl %r15d, %eax
	call put_number
	movb $':', %al
	call put
6:	call put_byte
	movl $1, %eax
3:	movl %eax, %ebp
	incl %r15d
	jmp 2b
4:	incl %r13d
	jmp 1b
5:	ret

/* The byte at %rbx + %r15, in hexadecimal. */
put_byte:
	movzbl (%rbx, %r15), %eax
	shrl $4, %eax
	movb hex_digits(%rax), %al
	call put
	movzbl (%rbx, %r15), %eax
	andl $15, %eax
	movb hex_digits(%rax), %al
	jmp put

/* ---------------------------------------------------------------------------------------------- exceptions */

/* #GP is noted, and the instruction of two bytes that raised it passed over; anything else is the end. */
take_exceptions:
	movl $on_gp, %eax
	movw %ax, gates + 13 * 16
	movw $8, gates + 13 * 16 + 2
	movw $0x8e00, gates + 13 * 16 + 4
	shrl $16, %eax
	movw %ax, gates + 13 * 16 + 6
	lidt gates_pointer
	ret

on_gp:
	addq $2, 8(%rsp)
	movb $1, faulted
	addq $8, %rsp
	iretq

/* ------------------------------------------------------------------------------------------------- console */

open_console:
	movw $0x7ff0, param			/* DOMID_SELF */
	movl $HVM_PARAM_CONSOLE_PFN, param + 4
	movl $1, %edi				/* HVMOP_get_param */
	leaq param, %rsi
	hypercall HVM_OP
	movq param + 8, %rax
	shlq $12, %rax
	movq %rax, ring
	movl $HVM_PARAM_CONSOLE_EVTCHN, param + 4
	movl $1, %edi
	leaq param, %rsi
	hypercall HVM_OP
	movl param + 8, %eax
	movl %eax, console_port
	ret

/* Put %al into the ring; waits while it is full.  Everything but %rax stays. */
put:
	pushq %rbx
	pushq %rcx
	pushq %rdx
	movq ring, %rbx
1:	movl OUT_PROD(%rbx), %ecx
	movl %ecx, %edx
	subl OUT_CONS(%rbx), %edx
	cmpl $RING_SIZE, %edx
	jb 2f
	pushq %rax
	call notify
	call yield
	popq %rax
	jmp 1b
2:	movl %ecx, %edx
	andl $RING_SIZE - 1, %edx
	movb %al, 1024(%rbx, %rdx)
	incl %ecx
	movl %ecx, OUT_PROD(%rbx)
	popq %rdx
	popq %rcx
	popq %rbx
	ret

notify:
	pushq %rdi
	pushq %rsi
	movl $EVTCHN_SEND, %edi
	leaq console_port, %rsi
	call saved_event_channel_op
	popq %rsi
	popq %rdi
	ret
saved_event_channel_op:
	pushq %rdx
	pushq %rcx
	pushq %r8
	pushq %r10
	hypercall EVENT_CHANNEL_OP
	popq %r10
	popq %r8
	popq %rcx
	popq %rdx
	ret
yield:
	pushq %rdi
	pushq %rsi
	pushq %rdx
	xorl %edi, %edi
	xorl %esi, %esi
	hypercall SCHED_OP
	popq %rdx
	popq %rsi
	popq %rdi
	ret

/* %r12 bytes at %rbx, in hexadecimal. */
put_bytes:
	xorl %r15d, %r15d
1:	cmpl %r12d, %r15d
	je 2f
	call put_byte
	incl %r15d
	jmp 1b
2:	ret

put_space_number:
	pushq %rax
	movb $' ', %al
	call put
	popq %rax
	jmp put_number

put_signed:
	testq %rax, %rax
	jns put_number
	negq %rax
	pushq %rax
	movb $'-', %al
	call put
	popq %rax

/* %rax in hexadecimal, without leading zeros. */
put_number:
	movl $15, %ecx
	movq %rax, %rdx
1:	cmpq $1, %rcx
	jb 2f
	movq %rdx, %rax
	shlb $2, %cl
	shrq %cl, %rax
	shrb $2, %cl
	testb $15, %al
	jne 2f
	decl %ecx
	jmp 1b
2:	movq %rdx, %rax
	shlb $2, %cl
	shrq %cl, %rax
	shrb $2, %cl
	andl $15, %eax
	movb hex_digits(%rax), %al
	call put
	decl %ecx
	jns 2b
	ret

	.section .data
	.balign 8
cursor: .quad 0
ring: .quad 0
param: .space 16
console_port: .long 0
range_count: .long 0
range_address: .space 4 * RANGES
range_length: .space 4 * RANGES
gates_pointer:
	.word 32 * 16 - 1
	.quad gates
faulted: .byte 0

	.section .bss
	.balign 16
gates: .space 32 * 16
kept: .space RANGES * RANGE_SIZE
	.text
