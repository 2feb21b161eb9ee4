"""The guest program that hands an exit status to pyvmm: it writes its argument, a decimal number, to an I/O port.

Written as machine code since a guest needs nothing but it: Debian's cloud kernels have no /dev/port, busybox has no `outb`,
and pyvmm cannot count on a compiler for the guest.  A test assembles the listing and compares.
"""

import struct

# Linux x86-64: iopl is system call 172, exit 60.
LISTING = """
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

_BEFORE_PORT = bytes.fromhex("488b742410 31db 0fb606 85c0 740c 6bdb0a 8d5c03d0 48ffc6 ebed bf03000000 b8ac000000 0f05 66ba")
_AFTER_PORT = bytes.fromhex("88d8 ee 31ff b83c000000 0f05")

_BASE = 0x400000
_ELF_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")


def machine_code(port: int) -> bytes:
    """What `LISTING` assembles to."""
    return _BEFORE_PORT + struct.pack("<H", port) + _AFTER_PORT


def exit_program(port: int) -> bytes:
    """A static ELF executable for x86-64 Linux."""
    code = machine_code(port)
    start = _ELF_HEADER.size + _PROGRAM_HEADER.size
    size = start + len(code)
    identity = b"\x7fELF\2\1\1".ljust(16, b"\0")
    header = _ELF_HEADER.pack(
        identity, 2, 62, 1, _BASE + start, _ELF_HEADER.size, 0, 0, _ELF_HEADER.size, _PROGRAM_HEADER.size, 1, 0, 0, 0
    )
    readable_executable, load = 5, 1
    segment = _PROGRAM_HEADER.pack(load, readable_executable, 0, _BASE, _BASE, size, size, 4096)
    return header + segment + code
