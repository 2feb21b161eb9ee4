/*
 * The run state area: running, and time that grows; the same by hypercall.  A second vcpu_time_info where the host keeps
 * one, which names the same moment as the first.
 */
#include "guest.inc"
main:
	movl $7, %edi
	movl $add_shared_info, %esi
	hypercall MEMORY_OP
	expect 0, "add_to_physmap"
	movl $5, %edi			/* register_runstate_memory_area */
	xorl %esi, %esi
	movl $runstate_address, %edx
	hypercall VCPU_OP
	expect 0, "register_runstate_memory_area"
	call spin
	movl runstate, %eax
	expect 0, "state is running"
	movq runstate + 8, %rax
	testq %rax, %rax
	jz no_time
	movq runstate + 16, %r12	/* time_running */
	testq %r12, %r12
	jz no_time
	call spin
	movq runstate + 16, %rax
	cmpq %r12, %rax
	jbe no_time
	movl $4, %edi			/* get_runstate_info */
	xorl %esi, %esi
	movl $again, %edx
	hypercall VCPU_OP
	expect 0, "get_runstate_info"
	movl again, %eax
	expect 0, "state by hypercall"
	movq again + 16, %rax
	cmpq %r12, %rax
	jb no_time
	movl $5, %edi
	xorl %esi, %esi
	movl $nowhere, %edx
	hypercall VCPU_OP
	movl $13, %edi			/* register_vcpu_time_memory_area */
	xorl %esi, %esi
	movl $time_address, %edx
	hypercall VCPU_OP
	cmpq $-ENOSYS, %rax
	je done
	expect 0, "register_vcpu_time_memory_area"
	say "time area\n"
	call spin
	movl time, %eax
	andl $1, %eax
	expect 0, "version is even"
	movl time + 24, %eax
	xorl 0x200000 + 32 + 24, %eax
	expect 0, "both copies scale alike"
done:
	verdict
no_time:
	say "FAIL time does not grow\n"
	jmp power_off

/* 100 ms by the TSC (leaf 3 has its kHz) with hypercalls and timers set on the way, as a kernel does. */
spin:
	movl $0x40000003, %eax
	xorl %ecx, %ecx
	cpuid
	movl %ecx, %r13d
	imulq $100, %r13, %r13
	call tsc
	addq %rax, %r13
1:	movl $8, %edi
	xorl %esi, %esi
	movl $singleshot, %edx
	hypercall VCPU_OP
	call tsc
	cmpq %r13, %rax
	jb 1b
	ret

	.section .data
	.balign 8
add_shared_info:
	.short 0x7ff0, 0
	.long 0
	.quad 0, 0x200
runstate_address: .quad runstate
time_address: .quad time
nowhere: .quad 0xf0000000
singleshot: .quad 0x7000000000000000, 0
	.section .bss
	.balign 64
runstate: .space 64
again: .space 64
time: .space 32
