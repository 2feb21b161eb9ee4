"""platform_op: what the initial domain's kernel has to do with the machine.  xen/include/public/platform.h"""

import errno
import struct

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.hypercalls.registry import TABLE, VERSIONS, Controls, suboperation
from vmm.xenabi.state import Call
from vmm.xenabi.toolstack_structs import (
    PlatformEnterAcpiSleep,
    PlatformGetidletime,
    PlatformOp,
    PlatformPcpuinfo,
    PlatformPcpuVersion,
    PlatformSettime64,
)
from vmm.xenabi.values import XenError

OP = Hypercall.platform_op
_ONLINE, _INVALID = 1, 2

TABLE[OP] = Controls(PlatformOp, VERSIONS[OP])


def _refuse(code: int, *commands: tuple[int, str]) -> None:
    """Commands that Xen 4.17 knows, and answers with an errno on a machine like this one."""
    for number, name in commands:

        def handler(call: Call) -> None:
            raise XenError(code)

        handler.__doc__ = f"Refused with {errno.errorcode[code]}, as on Xen."
        suboperation(OP, number, name)(handler)


# No MTRRs are the guest's to set, there is no EFI, no BIOS to ask, no memory to plug, and no symbols of Xen's.
_refuse(errno.EINVAL, (31, "add_memtype"), (32, "del_memtype"), (33, "read_memtype"), (39, "platform_quirk"))
_refuse(errno.ENOSYS, (49, "efi_runtime_call"), (50, "firmware_info"), (59, "mem_hotadd"), (61, "resource_op"))
_refuse(errno.EINVAL, (35, "microcode_update"), (52, "change_freq"), (63, "get_symbol"))
_refuse(errno.EINVAL, (54, "set_processor_pminfo"))
_refuse(errno.EOPNOTSUPP, (56, "cpu_online"), (57, "cpu_offline"), (58, "cpu_hotadd"), (60, "core_parking"))


@suboperation(OP, 17, "settime32", arg=PlatformSettime64)
def settime32(call: Call, op: PlatformSettime64) -> None:
    """The host's clock is not the guest's to set."""
    raise XenError(errno.EOPNOTSUPP)


@suboperation(OP, 62, "settime64", arg=PlatformSettime64)
def settime64(call: Call, op: PlatformSettime64) -> None:
    """The host's clock is not the guest's to set."""
    raise XenError(errno.EINVAL if op.mbz else errno.EOPNOTSUPP)


@suboperation(OP, 48, "get_cpu_version", arg=PlatformPcpuVersion, out=True)
def get_cpu_version(call: Call, op: PlatformPcpuVersion) -> None:
    """Maker, family, model and stepping of one of the host's CPUs."""
    facts = call.domain.hypervisor.facts()
    op.max_present = len(facts.cpus) - 1
    if op.xen_cpuid < len(facts.cpus):
        op.vendor_id, op.family, op.model, op.stepping = facts.vendor, facts.family, facts.model, facts.stepping
    else:
        op.vendor_id, op.family, op.model, op.stepping = b"", 0, 0, 0


@suboperation(OP, 51, "enter_acpi_sleep", arg=PlatformEnterAcpiSleep)
def enter_acpi_sleep(call: Call, op: PlatformEnterAcpiSleep) -> None:
    """A PVH domain writes PM1a_CNT itself."""
    raise XenError(errno.EINVAL)


@suboperation(OP, 53, "getidletime", arg=PlatformGetidletime, out=True)
def getidletime(call: Call, op: PlatformGetidletime) -> None:
    """How long each CPU of a bitmap has been idle; those that there are stay in it."""
    idle = call.domain.hypervisor.facts().idle_ns
    count = min(op.cpumap_nr_cpus, len(idle))
    asked = call.vcpu.read_virtual(op.cpumap_bitmap, -(-count // 8)) if count else b""
    bits = int.from_bytes(asked, "little") & (1 << count) - 1
    for cpu in range(count):
        if bits >> cpu & 1:
            call.vcpu.write_virtual(op.idletime + 8 * cpu, struct.pack("<Q", idle[cpu]))
    if count:
        call.vcpu.write_virtual(op.cpumap_bitmap, bits.to_bytes(-(-count // 8), "little"))
    op.now = call.domain.system_time_ns()


@suboperation(OP, 55, "get_cpuinfo", arg=PlatformPcpuinfo, out=True)
def get_cpuinfo(call: Call, op: PlatformPcpuinfo) -> None:
    """Whether one of the host's CPUs is there."""
    cpus = len(call.domain.hypervisor.facts().cpus)
    op.max_present = cpus - 1
    op.flags = _ONLINE if op.xen_cpuid < cpus else _INVALID
    op.apic_id = op.acpi_id = op.xen_cpuid if op.xen_cpuid < cpus else 0
