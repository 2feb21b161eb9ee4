"""console_io: Xen's emergency console, which `earlyprintk=xen` writes to.  xen/include/public/xen.h"""

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls.registry import suboperation
from vmm.xenabi.state import Call

CHUNK_BYTES = 4096


@suboperation(Hypercall.console_io, 0, "write", names=("count", "buffer"))
def write(call: Call) -> None:
    """(CONSOLEIO_write, count, buffer): print `count` bytes."""
    count, buffer = call.args[1] & 0x7FFF_FFFF, call.args[2]
    while count and not call.vcpu.stop_requested():
        chunk = min(count, CHUNK_BYTES)
        call.domain.console_write(call.vcpu.read_virtual(buffer, chunk))
        buffer, count = buffer + chunk, count - chunk


@suboperation(Hypercall.console_io, 1, "read", names=("count", "buffer"))
def read(call: Call) -> int:
    """(CONSOLEIO_read, count, buffer): what was typed, for the initial domain; a domU has no such input."""
    data = call.domain.console_read(min(call.args[1] & 0x7FFF_FFFF, CHUNK_BYTES))
    if data:
        call.vcpu.write_virtual(call.args[2], data)
    return len(data)
