"""Finding the vmcall and vmmcall of an image that has to be patched: by symbol, else by shape."""

from typing import NamedTuple

from vmm.boot.elf import ElfImage
from vmm.boot.errors import ImageError
from vmm.xenabi.transport import find_hypercall_pairs, find_hypercall_pairs_32, is_hypercall_instruction

SYMBOLS = ("xen_hypercall_amd", "xen_hypercall_intel")
_ENDBR64 = b"\xf3\x0f\x1e\xfa"


class Site(NamedTuple):
    """One instruction to replace: where it is loaded, and its bytes."""

    gpa: int
    instruction: bytes


def _by_symbol(image: ElfImage) -> list[Site]:
    sites = []
    for gpa in image.symbols(*SYMBOLS).values():
        code = image.byte_at(gpa, 7)
        if code.startswith(_ENDBR64):
            gpa, code = gpa + len(_ENDBR64), code[len(_ENDBR64) :]
        if is_hypercall_instruction(code):
            sites.append(Site(gpa, code[:3]))
    return sites


def find_sites(image: ElfImage) -> list[Site]:
    """The instructions to patch, none where the image has none.  ImageError where it is not clear which."""
    named = _by_symbol(image)
    if named:
        return named
    sites, pairs = [], 0
    for segment in image.segments:
        if not segment.executable:
            continue
        start, end = segment.file_offset, segment.file_offset + segment.file_bytes
        if image.bits == 64:
            found = find_hypercall_pairs(image.data, start, end, segment.gpa)
        else:
            found = find_hypercall_pairs_32(image.data, start, end)
        for pair in found:
            pairs += 1
            for offset in pair:
                sites.append(Site(segment.gpa + offset - start, bytes(image.data[offset : offset + 3])))
    if pairs > 1:
        raise ImageError(
            f"{image.name} has {pairs} places that look like Linux's vmcall and vmmcall, so it is not clear which to "
            "patch; give a vmlinux with symbols, or use a host whose KVM has KVM_XEN"
        )
    return sites
