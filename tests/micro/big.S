/* An image of 64 MiB, whose first, middle and last words must have arrived. */
#include "guest.inc"
main:
	movq first, %rax
	expect 0x1122334455667788, "first word"
	movq middle, %rax
	expect 0x99aabbccddeeff00, "middle word"
	movq last, %rax
	expect 0x0f1e2d3c4b5a6978, "last word"
	movq beyond, %rax
	expect 0, "zeros after the image"
	verdict
	.section .data
	.balign 8
first: .quad 0x1122334455667788
	.fill 4194304, 8, 0x0101010101010101
middle: .quad 0x99aabbccddeeff00
	.fill 4194304, 8, 0x0202020202020202
last: .quad 0x0f1e2d3c4b5a6978
	.section .bss
beyond: .quad 0
