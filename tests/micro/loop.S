/* Never ends by itself. */
#include "guest.inc"
main:
	say "looping\n"
1:	jmp 1b
