"""console_io: Xen's emergency console, which `earlyprintk=xen` writes to.  xen/include/public/xen.h"""

import errno

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls.registry import checked_first, suboperation
from vmm.xenabi.state import Call
from vmm.xenabi.values import Restart, XenError

CHUNK_BYTES = 4096
WRITE = 0


@suboperation(Hypercall.console_io, 0, "write", names=("count", "buffer"))
def write(call: Call) -> Restart | None:
    """(CONSOLEIO_write, count, buffer): print `count` bytes; what is long goes piece by piece."""
    count, buffer = call.args[1] & 0x7FFF_FFFF, call.args[2]
    if not count:
        return None
    chunk = min(count, CHUNK_BYTES)
    call.domain.console_write(call.vcpu.read_virtual(buffer, chunk))
    return Restart((call.args[0], count - chunk, buffer + chunk)) if count > chunk else None


@suboperation(Hypercall.console_io, 1, "read", names=("count", "buffer"))
def read(call: Call) -> int:
    """(CONSOLEIO_read, count, buffer): what was typed."""
    data = call.domain.console_read(min(call.args[1] & 0x7FFF_FFFF, CHUNK_BYTES))
    if data:
        call.vcpu.write_virtual(call.args[2], data)
    return len(data)


@checked_first(Hypercall.console_io)
def may_use(call: Call) -> None:
    """A domU may write, as on a debug build of Xen, and no more."""
    if not call.domain.privileged and call.args[0] & 0xFFFF_FFFF != WRITE:
        raise XenError(errno.EPERM)
