/*
 * Secondary vCPUs, as many as there are: by VCPUOP_initialise in 64-bit and in 32-bit mode and by INIT/SIPI, in turn.  Each
 * takes an event-channel IPI; none while VCPUOP_down has stopped it, and the one that came meanwhile after VCPUOP_up.
 */
#include "guest.inc"
#include "events.inc"
#define TRAMPOLINE 0x8000
#define CPU context + 8			/* the union of registers */
main:
	call lapic_on
	call prepare_for_events
	movl $trampoline, %esi
	movl $TRAMPOLINE, %edi
	movl $trampoline_end - trampoline, %ecx
	rep movsb
	movl $1, %r12d			/* the vCPU in hand */
	movl $0, %r13d			/* the way to start it */
next:
	movl $3, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	cmpq $-2, %rax			/* -ENOENT: that was the last */
	je all_up
	expect 0, "is_up before its start"
	/* A vCPU without a first state does not come up. */
	movl $1, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect -22, "up before initialise"
	/* Nor does one with a state that no CPU has. */
	call clear_context
	movl $1, context
	xorl %edi, %edi
	movl %r12d, %esi
	movl $context, %edx
	hypercall VCPU_OP
	expect -22, "initialise with nothing set"
	cmpl $1, %r13d
	je by_32_bit_state
	cmpl $2, %r13d
	je by_sipi
	call clear_context
	movl $1, context
	movq $ap_main, CPU + 64
	movl $0x80050033, CPU + 80
	movq $top_level, CPU + 88
	movq $0x20, CPU + 96
	movq $0x500, CPU + 104
	jmp by_state
by_32_bit_state:
	call clear_context
	movl $ap_32, CPU + 32
	movl $0x11, CPU + 40
	movl $-1, CPU + 84	/* limits */
	movl $-1, CPU + 88
	movl $-1, CPU + 92
	movl $-1, CPU + 96
	movl $0x67, CPU + 100
	movw $0xc9b, CPU + 104	/* attributes: code, data, stack, data, task */
	movw $0xc93, CPU + 106
	movw $0xc93, CPU + 108
	movw $0xc93, CPU + 110
	movw $0x8b, CPU + 112
by_state:
	xorl %edi, %edi
	movl %r12d, %esi
	movl $context, %edx
	hypercall VCPU_OP
	expect 0, "initialise"
	xorl %edi, %edi
	movl %r12d, %esi
	movl $context, %edx
	hypercall VCPU_OP
	expect -17, "initialise twice"
	movl $1, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 0, "up"
	jmp started
by_sipi:
	movl $0x830, %ecx
	leal (, %r12d, 2), %edx
	movl $0x4500, %eax		/* INIT */
	wrmsr
	movl $0x830, %ecx
	leal (, %r12d, 2), %edx
	movl $0x4600 | TRAMPOLINE >> 12, %eax
	wrmsr
started:
	call wait_for_life
	movl $3, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 1, "is_up"
	/* An IPI arrives. */
	call send_ipi
	movl $1, %r11d
	call wait_for_count
	/* Not at a vCPU that is down; it does when that is up again. */
	movl $2, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 0, "down"
	movl $3, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 0, "is_up of one that is down"
	call send_ipi
	movl $0x20000, %ecx
1:	pause
	loop 1b
	movq counts(, %r12, 8), %rax
	expect 1, "a vCPU that is down takes nothing"
	movl $1, %edi
	movl %r12d, %esi
	hypercall VCPU_OP
	expect 0, "up again"
	movl $2, %r11d
	call wait_for_count
	incl %r12d
	incl %r13d
	cmpl $3, %r13d
	jne next
	xorl %r13d, %r13d
	jmp next
all_up:
	movl %r12d, %eax
	movb $10, %dl
	call print_hex
	verdict

clear_context:
	movl $context, %edi
	xorl %eax, %eax
	movl $128, %ecx
	rep stosb
	ret

wait_for_life:
	movl $0x40000000, %ecx
1:	cmpb $0, alive(%r12)
	jne 2f
	pause
	loop 1b
	say "FAIL a vCPU did not start\n"
	jmp power_off
2:	ret

send_ipi:
	movq %r12, %rsi
	shlq $6, %rsi
	addq $hypercall_data + 12, %rsi	/* its port */
	movl $4, %edi
	hypercall EVENT_CHANNEL_OP
	expect 0, "send"
	ret

/* Wait until vCPU %r12 has seen %r11 events. */
wait_for_count:
	movl $0x40000000, %ecx
1:	cmpq %r11, counts(, %r12, 8)
	je 2f
	pause
	loop 1b
	say "FAIL an IPI did not arrive\n"
	jmp power_off
2:	ret

	.code16
trampoline:
	cli
	lgdtl %cs:trampoline_table - trampoline
	movl %cr0, %eax
	orl $1, %eax
	movl %eax, %cr0
	ljmpl $0x18, $ap_32
	.balign 4
trampoline_table:
	.word descriptor_table_pointer - descriptor_table - 1
	.long descriptor_table
trampoline_end:

	.code32
ap_32:
	lgdt %cs:descriptor_table_pointer	/* after a SIPI only CS is flat */
	movl $0x10, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $top_level, %eax
	movl %eax, %cr3
	movl %cr4, %eax
	orl $0x20, %eax
	movl %eax, %cr4
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x100, %eax
	wrmsr
	movl %cr0, %eax
	orl $0x80010000, %eax
	movl %eax, %cr0
	ljmp $0x08, $ap_main

	.code64
ap_main:
	/* The vCPU's own number, as Linux learns it. */
	movl $0x40000004, %eax
	xorl %ecx, %ecx
	cpuid
	movl %ebx, %r15d
	movq %r15, %rax
	shlq $9, %rax
	leaq stacks + 512(%rax), %rsp
	own_segments
	call lapic_on
	movq %r15, %r14
	shlq $6, %r14
	addq $hypercall_data, %r14
	movl %r15d, (%r14)		/* set_evtchn_upcall_vector: vcpu, vector */
	movl $VECTOR, 4(%r14)
	movl $23, %edi
	movq %r14, %rsi
	hypercall HVM_OP
	movl %r15d, 8(%r14)		/* bind_ipi: vcpu, port */
	movl $7, %edi
	leaq 8(%r14), %rsi
	hypercall EVENT_CHANNEL_OP
	movb $1, alive(%r15)
	sti
2:	hlt
	jmp 2b

handler:
	enter_handler
	movl 12(%r14), %ecx
	lock btrq %rcx, SHARED_INFO + 0x800
	jnc 1f
	incq counts(, %r15, 8)
1:	end_of_interrupt
	leave_handler

	.section .bss
	.balign 16
context: .space 128
counts: .space 8 * 256
alive: .space 256
	.balign 64
hypercall_data: .space 64 * 256
stacks: .space 512 * 256
