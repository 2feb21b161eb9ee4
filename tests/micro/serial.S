/* Print on the first serial port, as early consoles do: wait for the transmitter, send. */
#include "guest.inc"
main:
	leaq text, %rsi
	movl $text_end - text, %ecx
1:	movl $0x3fd, %edx
2:	inb %dx, %al
	testb $0x20, %al
	jz 2b
	movl $0x3f8, %edx
	lodsb
	outb %al, %dx
	loop 1b
	verdict

	.section .rodata
text:	.ascii "hello from COM1\n"
text_end:
