/* An exception without an interrupt table: the CPU shuts down. */
#include "guest.inc"
main:
	say "about to fault\n"
	lidt empty
	movl $0x5ca1ab1e, %eax
	ud2
	.section .data
	.balign 8
empty: .quad 0, 0
