"""The guest program that hands an exit status to pyvmm: it writes its argument, a decimal number, to an I/O port.

Written as machine code since a guest needs nothing but it: Debian's cloud kernels have no /dev/port, busybox has no `outb`,
and pyvmm cannot count on a compiler for the guest.  A test assembles the listing and compares.
"""

import struct

# Linux: iopl is system call 172 (110 of i386), exit 60 (1).
LISTING_64 = """
        mov     16(%rsp), %rsi          # argv[1]
        xor     %ebx, %ebx
next:   movzbl  (%rsi), %eax
        test    %eax, %eax
        jz      done
        imul    $10, %ebx, %ebx
        lea     -48(%rbx,%rax), %ebx
        inc     %rsi
        jmp     next
done:   mov     $3, %edi
        mov     $172, %eax
        syscall
        mov     ${port}, %dx
        mov     %bl, %al
        out     %al, %dx
        xor     %edi, %edi
        mov     $60, %eax
        syscall
"""

LISTING_32 = """
        mov     8(%esp), %esi           # argv[1]
        xor     %edi, %edi
next:   movzbl  (%esi), %eax
        test    %eax, %eax
        jz      done
        imul    $10, %edi, %edi
        lea     -48(%edi,%eax), %edi
        inc     %esi
        jmp     next
done:   mov     $3, %ebx
        mov     $110, %eax
        int     $0x80
        mov     ${port}, %dx
        mov     %edi, %eax
        out     %al, %dx
        xor     %ebx, %ebx
        mov     $1, %eax
        int     $0x80
"""

_AROUND_PORT = {
    64: (
        bytes.fromhex("488b742410 31db 0fb606 85c0 740c 6bdb0a 8d5c03d0 48ffc6 ebed bf03000000 b8ac000000 0f05 66ba"),
        bytes.fromhex("88d8 ee 31ff b83c000000 0f05"),
    ),
    32: (
        bytes.fromhex("8b742408 31ff 0fb606 85c0 740a 6bff0a 8d7c07d0 46 ebef bb03000000 b86e000000 cd80 66ba"),
        bytes.fromhex("89f8 ee 31db b801000000 cd80"),
    ),
}

_BASE = 0x400000
_LOAD, _READABLE_EXECUTABLE, _PAGE_BYTES = 1, 5, 4096


def machine_code(port: int, bits: int) -> bytes:
    """What the listing for 32 or 64 bits assembles to."""
    before, after = _AROUND_PORT[bits]
    return before + struct.pack("<H", port) + after


def exit_program(port: int, bits: int) -> bytes:
    """A static ELF executable for Linux on x86, of 32 or 64 bits."""
    code = machine_code(port, bits)
    if bits == 64:
        kind, machine, header, segment = 2, 62, struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ")
    else:
        kind, machine, header, segment = 1, 3, struct.Struct("<16sHHIIIIIHHHHHH"), struct.Struct("<8I")
    start = header.size + segment.size
    size = start + len(code)
    identity = b"\x7fELF" + bytes([kind, 1, 1]) + bytes(9)
    if bits == 64:
        loaded = segment.pack(_LOAD, _READABLE_EXECUTABLE, 0, _BASE, _BASE, size, size, _PAGE_BYTES)
    else:
        loaded = segment.pack(_LOAD, 0, _BASE, _BASE, size, size, _READABLE_EXECUTABLE, _PAGE_BYTES)
    packed = header.pack(identity, 2, machine, 1, _BASE + start, header.size, 0, 0, header.size, segment.size, 1, 0, 0, 0)
    return packed + loaded + code
