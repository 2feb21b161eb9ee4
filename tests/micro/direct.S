/* The guest executes vmcall or vmmcall itself, in the two functions that Linux has and the patcher must find. */
#define NO_PAGE
#include "guest.inc"
main:
	movl $0, %eax
	cpuid
	cmpl $0x68747541, %ebx		/* "Auth"enticAMD */
	jne 1f
	movq $xen_hypercall_amd, hypercall_function
1:	say "hello by direct call\n"
	movl $XEN_VERSION, %eax
	movl $0, %edi
	call direct_hypercall
	expect 0x40011, "xen_version"
	verdict

direct_hypercall:
	jmp *hypercall_function

	.balign 16
xen_hypercall_amd:
	vmmcall
	ret
	int3
	.balign 16
xen_hypercall_intel:
	vmcall
	ret
	int3

	.section .data
	.balign 8
hypercall_function: .quad xen_hypercall_intel
