"""xen_version: who the hypervisor is.  xen/include/public/version.h"""

import errno

from vmm.xenabi.constants import PAGE_BYTES, Hypercall, XenFeature
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.hypercalls.registry import suboperation
from vmm.xenabi.state import Call
from vmm.xenabi.structs import FeatureInfo, PlatformParameters
from vmm.xenabi.values import XenError

PVH_FEATURES = (
    XenFeature.writable_page_tables,
    XenFeature.auto_translated_physmap,
    XenFeature.hvm_callback_vector,
    XenFeature.hvm_safe_pvclock,
    XenFeature.memory_op_vnode_supported,
    XenFeature.not_direct_mapped,
)
"""What Xen 4.17 offers a PVH domU: 0x12305."""


def _text(call: Call, *fields: tuple[str, int]) -> int:
    data = b"".join(text.encode()[: size - 1].ljust(size, b"\0") for text, size in fields)
    call.vcpu.write_virtual(call.args[1], data)
    return 0


@suboperation(Hypercall.xen_version, 0, "version")
def version(call: Call) -> int:
    """The version, major in the upper 16 bits; takes no structure."""
    identity = call.domain.identity
    return identity.major << 16 | identity.minor


@suboperation(Hypercall.xen_version, 1, "extraversion", names=("buffer",))
def extraversion(call: Call) -> int:
    """xen_extraversion_t, 16 characters."""
    return _text(call, (call.domain.identity.extra, 16))


@suboperation(Hypercall.xen_version, 2, "compile_info", names=("buffer",))
def compile_info(call: Call) -> int:
    """xen_compile_info_t: compiler, by whom, where, when."""
    identity = call.domain.identity
    return _text(
        call,
        (identity.compiler, 64),
        (identity.compiled_by, 16),
        (identity.compile_domain, 32),
        (identity.compile_date, 32),
    )


@suboperation(Hypercall.xen_version, 3, "capabilities", names=("buffer",))
def capabilities(call: Call) -> int:
    """xen_capabilities_info_t, 1024 characters."""
    return _text(call, (call.domain.identity.capabilities, 1024))


@suboperation(Hypercall.xen_version, 4, "changeset", names=("buffer",))
def changeset(call: Call) -> int:
    """xen_changeset_info_t, 64 characters."""
    return _text(call, (call.domain.identity.changeset, 64))


@suboperation(Hypercall.xen_version, 5, "platform_parameters", arg=PlatformParameters, out=True)
def platform_parameters(call: Call, info: PlatformParameters) -> None:
    """Where Xen's own part of the address space would begin."""
    info.virt_start = call.domain.behaviour.virt_start if call.abi is Abi.X86_64 else 0


@suboperation(Hypercall.xen_version, 6, "get_features", arg=FeatureInfo, out=True)
def get_features(call: Call, info: FeatureInfo) -> None:
    """One word of feature bits; only the first has any."""
    if info.submap_idx != 0:
        raise XenError(errno.EINVAL)
    info.submap = sum(1 << feature for feature in PVH_FEATURES)
    if call.domain.privileged:
        info.submap |= 1 << XenFeature.dom0


@suboperation(Hypercall.xen_version, 7, "pagesize")
def pagesize(call: Call) -> int:
    """Bytes a page; takes no structure."""
    if call.args[1]:
        raise XenError(errno.EINVAL)
    return PAGE_BYTES


@suboperation(Hypercall.xen_version, 8, "guest_handle", names=("buffer",))
def guest_handle(call: Call) -> None:
    """The domain's UUID, 16 bytes."""
    call.vcpu.write_virtual(call.args[1], call.domain.handle)


@suboperation(Hypercall.xen_version, 9, "commandline", names=("buffer",))
def commandline(call: Call) -> int:
    """xen_commandline_t, 1024 characters; a domU is told nothing, as in Xen."""
    return _text(call, ("" if call.domain.privileged else "<denied>", 1024))


@suboperation(Hypercall.xen_version, 10, "build_id", names=("buffer",))
def build_id(call: Call) -> int:
    """Refused to a domU; pyvmm has no build id to give a dom0."""
    raise XenError(errno.ENODATA if call.domain.privileged else errno.EPERM)


def _long_text(call: Call, text: str) -> int:
    """A text of whatever length, into a xen_varbuf: its length; without a buffer, that alone."""
    if not call.domain.behaviour.has_long_texts:
        raise XenError(errno.ENOSYS)
    data, buffer = text.encode(), call.args[1]
    if not buffer:
        return len(data)
    room = int.from_bytes(call.vcpu.read_virtual(buffer, 4), "little")
    if room < len(data):
        raise XenError(errno.ENOBUFS)
    call.vcpu.write_virtual(buffer + 4, data)
    return len(data)


@suboperation(Hypercall.xen_version, 11, "extraversion2", names=("buffer",))
def extraversion2(call: Call) -> int:
    """What stands behind the version, of any length."""
    return _long_text(call, call.domain.identity.extra)


@suboperation(Hypercall.xen_version, 12, "capabilities2", names=("buffer",))
def capabilities2(call: Call) -> int:
    """The interfaces, of any length."""
    return _long_text(call, call.domain.identity.capabilities)


@suboperation(Hypercall.xen_version, 13, "changeset2", names=("buffer",))
def changeset2(call: Call) -> int:
    """The changeset, of any length."""
    return _long_text(call, call.domain.identity.changeset)


@suboperation(Hypercall.xen_version, 14, "commandline2", names=("buffer",))
def commandline2(call: Call) -> int:
    """Xen's command line, of any length; a domU is told nothing."""
    return _long_text(call, "" if call.domain.privileged else "<denied>")
