/* Shut down with the reason that is the command line's first character. */
#include "guest.inc"
main:
	movq 24(%rbx), %rax
	movzbl (%rax), %eax
	subl $48, %eax
	movl %eax, shutdown_poweroff
	say "ending\n"
	jmp power_off
