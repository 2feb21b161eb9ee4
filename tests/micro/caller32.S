/* A guest in 32-bit protected mode: arguments in EBX, ECX, EDX, ESI, EDI, EBP, and structures in the 32-bit layout. */
#define STAY_32
#include "guest.inc"
main:
	movl $hello, %esi
	movl $hello_end - hello, %ecx
	call print_bytes
	/* xen_version takes its subop in EBX. */
	movl $0, %ebx
	hypercall XEN_VERSION
	cmpl $0x40011, %eax
	jne fail
	/* A compat structure: platform_parameters is one 32-bit word. */
	movl $0x55555555, parameters
	movl $0x66666666, parameters + 4
	movl $5, %ebx
	movl $parameters, %ecx
	hypercall XEN_VERSION
	testl %eax, %eax
	jnz fail
	cmpl $0x55555555, parameters
	je fail
	cmpl $0x66666666, parameters + 4
	jne fail
	/* evtchn_alloc_unbound {DOMID_SELF, DOMID_SELF} gives a port. */
	movl $6, %ebx
	movl $allocate, %ecx
	hypercall EVENT_CHANNEL_OP
	testl %eax, %eax
	jnz fail
	cmpl $0, allocate + 4
	je fail
	/* A bad pointer is -EFAULT in 32 bits too. */
	movl $6, %ebx
	movl $0xe0000000, %ecx
	hypercall EVENT_CHANNEL_OP
	cmpl $-EFAULT, %eax
	jne fail
	/* A place that is a compat handle has 32 bits: what is above it is not read.  state_entry_time shows the write. */
	movl $5, %ebx			/* register_runstate_memory_area */
	movl $0, %ecx
	movl $area, %edx
	hypercall VCPU_OP
	testl %eax, %eax
	jnz fail
	cmpl $0, runstate + 4
	je fail
	movl $pass, %esi
	movl $pass_end - pass, %ecx
	call print_bytes
	ret
fail:
	movl $failed, %esi
	movl $failed_end - failed, %ecx
	call print_bytes
	ret
	.section .rodata
hello: .ascii "hello from 32 bits\n"
hello_end:
pass: .ascii "PASS\n"
pass_end:
failed: .ascii "FAIL\n"
failed_end:
	.section .data
	.balign 8
parameters: .long 0, 0
allocate: .short 0x7ff0, 0x7ff0
	.long 0
area:	.long runstate, 0x55555555
runstate: .space 44
