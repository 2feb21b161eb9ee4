/*
 * The chips that a dom0 has: PCI's configuration space by both ways, an edge of the clock's through the IOAPIC, and the
 * SCI's level, which comes again after its end for as long as it is high.
 */
#include "guest.inc"
#include "events.inc"
#define IOAPIC 0xfec00000
#define ECAM 0xb0000000
#define PM1_STATUS 0xb000
#define POWER_BUTTON 0x100
main:
	xorl %r15d, %r15d
	call lapic_on
	call prepare_for_events
	movl $0xcf8, %edx
	movl $0x80000000, %eax
	outl %eax, %dx
	movl $0xcfc, %edx
	inl %dx, %eax
	movl %eax, %r13d
	expect 0x29c08086, "host bridge by ports"
	movl $ECAM, %ecx
	movl (%rcx), %eax
	expect 0x29c08086, "host bridge by memory"
	movl $ECAM + 0xf8000, %ecx
	movl (%rcx), %eax
	incl %eax
	expect 0, "an empty slot"
	movl $1, %edi
	call read_ioapic
	expect 0x170011, "version of the IOAPIC"

	/* The clock: an interrupt with each second. */
	movl $0x20, %edi		/* line 8: an edge */
	movl $VECTOR, %esi
	call write_ioapic
	movb $11, %al
	outb %al, $0x70
	movb $0x12, %al			/* update-ended interrupts, 24 hours */
	outb %al, $0x71
	sti
1:	pause
	cmpl $2, clocks
	jb 1b
	movb $11, %al
	outb %al, $0x70
	movb $0x02, %al
	outb %al, $0x71

	/* The power button, whose event stays until it is cleared. */
	movl $0x10000, %esi
	movl $0x20, %edi
	call write_ioapic
	movl $1, sci
	movl $0x22, %edi		/* line 9: a level */
	movl $VECTOR | 1 << 15, %esi
	call write_ioapic
	movl $PM1_STATUS + 2, %edx
	movl $POWER_BUTTON, %eax
	outw %ax, %dx
	say "button\n"
2:	pause
	cmpl $3, buttons
	jb 2b
	movl $0x80000, %ecx		/* cleared with the third: no fourth comes */
3:	pause
	loop 3b
	movl buttons, %eax
	expect 3, "interrupts of a level"
	movl $0x22, %edi
	call read_ioapic
	shrl $14, %eax
	andl $1, %eax
	expect 0, "remote IRR after the end"
	verdict

handler:
	pushq %rax
	pushq %rcx
	pushq %rdx
	cmpl $0, sci
	jne 4f
	incl clocks
	movb $12, %al			/* reading the flags lets the next come */
	outb %al, $0x70
	inb $0x71, %al
	jmp 5f
4:	incl buttons
	cmpl $3, buttons
	jne 5f
	movl $PM1_STATUS, %edx
	movl $POWER_BUTTON, %eax
	outw %ax, %dx
5:	end_of_interrupt
	leave_handler

/* %rax = register %edi. */
read_ioapic:
	movl $IOAPIC, %ecx
	movl %edi, (%rcx)
	movl 0x10(%rcx), %eax
	ret
write_ioapic:
	movl $IOAPIC, %ecx
	movl %edi, (%rcx)
	movl %esi, 0x10(%rcx)
	ret

	.section .bss
	.balign 8
clocks:	.long 0
buttons: .long 0
sci:	.long 0
