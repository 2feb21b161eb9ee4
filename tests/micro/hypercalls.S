/* For benchmarks: xen_version without end. */
#include "guest.inc"
main:
	say "ready\n"
1:	movl $0, %edi
	hypercall XEN_VERSION
	jmp 1b
