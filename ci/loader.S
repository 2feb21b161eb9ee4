/*
 * The option ROM by which Bochs starts L1: reads kernel, initramfs and start_info from the first disk and enters the kernel
 * as PVH does.  The BIOS calls it once the ACPI tables are made and before it waits for a key.  Its table at the end is
 * filled in by in_bochs.py, and so is the checksum.
 */
	.equ ROM, 0xd0000
	.equ BLOCK_SECTORS, 128
	.equ DATA, 0x1f0		/* the first ATA channel, whose interrupt nobody needs yet */
	.equ COUNT, 0x1f2
	.equ COMMAND, 0x1f7
	.equ CONTROL, 0x3f6
	.code16
	.globl _start
_start:
	.byte 0x55, 0xaa, 1
	cli
	movw %cs, %ax
	movw %ax, %ds
	inb $0x92, %al
	orb $2, %al			/* A20 */
	outb %al, $0x92
	lgdtl gdtr - _start
	movl %cr0, %eax
	orb $1, %al
	movl %eax, %cr0
	ljmpl $8, $flat
	.code32
flat:	movw $16, %ax
	movw %ax, %ds
	movw %ax, %es
	movw %ax, %ss
	movb $2, %al			/* no interrupt */
	movw $CONTROL, %dx
	outb %al, %dx
	cld
	movl place, %edi
	movl sectors, %ebp
	movl first, %ebx
1:	movw $COUNT, %dx
	movb $BLOCK_SECTORS, %al
	outb %al, %dx
	incl %edx
	movb %bl, %al
	outb %al, %dx
	incl %edx
	movb %bh, %al
	outb %al, %dx
	incl %edx
	movl %ebx, %eax
	shrl $16, %eax
	outb %al, %dx
	incl %edx
	movb %ah, %al
	orb $0xe0, %al			/* the master, by LBA */
	outb %al, %dx
	incl %edx
	movb $0x20, %al			/* read */
	outb %al, %dx
	movl $BLOCK_SECTORS, %esi
2:	movw $COMMAND, %dx
3:	inb %dx, %al
	andb $0x88, %al
	cmpb $0x08, %al			/* not busy, and data */
	jne 3b
	movw $DATA, %dx
	movl $256, %ecx
	rep insw
	decl %esi
	jnz 2b
	addl $BLOCK_SECTORS, %ebx
	subl $BLOCK_SECTORS, %ebp
	ja 1b
	movb $0, %al
	movw $CONTROL, %dx
	outb %al, %dx
	movl info, %ebx
	jmp *entry
	.balign 8
gdt:	.quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff
gdtr:	.word . - gdt - 1
	.long gdt
	.org 488
first:	.long 0			/* sector */
place:	.long 0			/* address */
sectors: .long 0
entry:	.long 0
info:	.long 0			/* start_info's address */
	.org 511
	.byte 0
