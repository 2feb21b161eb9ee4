/* CPUID says Xen; the hypercall page works; a line on the console; power off. */
#include "guest.inc"
main:
	movl $0x40000000, %eax
	cpuid
	movl %ebx, %eax
	expect 0x566e6558, "cpuid"
	say "hello from a micro-guest\n"
	movl $0, %edi
	hypercall XEN_VERSION
	expect 0x40011, "xen_version"
	verdict
