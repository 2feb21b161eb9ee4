"""What tells versions of Xen apart, beside what they say of themselves: one table, as real ones answer."""

import errno
from typing import NamedTuple


class Behaviour(NamedTuple):
    """Of one version, to a PVH guest."""

    special_pages: int
    """What xl gives a domain beside its memory, pages: its console's and xenstore's, its tables."""
    virt_start: int
    """XENVER_platform_parameters, to a 64-bit guest."""
    no_machine_map: int
    """XENMEM_machine_memory_map, an errno."""
    no_pirqs: int
    """PHYSDEVOP_map_pirq and unmap_pirq, an errno."""
    bad_vcpu_info: int
    """VCPUOP_register_vcpu_info at an offset that cannot be, an errno."""
    looks_at_empty_copies: bool
    """Whether GNTTABOP_copy of no bytes is refused as one of some would be."""
    has_resources: bool
    """Whether XENMEM_acquire_resource looks at what is asked, instead of refusing a guest without machine frames."""
    has_long_texts: bool
    """Whether there are XENVER_extraversion2, capabilities2, changeset2 and commandline2."""


_BEHAVIOURS = {
    (4, 17): Behaviour(17, 0xFFFF_8000_0000_0000, errno.ENOSYS, errno.ENOSYS, errno.ENXIO, True, False, False),
    (4, 20): Behaviour(15, 0, errno.EPERM, errno.EPERM, errno.EINVAL, False, True, True),
}


def behaviour(major: int, minor: int) -> Behaviour:
    """Of the newest version in the table that is not above this one; of the oldest where all are."""
    known = [version for version in sorted(_BEHAVIOURS) if version <= (major, minor)]
    return _BEHAVIOURS[known[-1] if known else min(_BEHAVIOURS)]
