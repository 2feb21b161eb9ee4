"""What a domain has, as flags set once at its creation; only the named combinations are allowed."""

from enum import Flag, auto

from vmm.errors import UsageError


class Feature(Flag):
    """One emulated piece of a PC, or one privilege."""

    LAPIC = auto()
    ACPI_PM = auto()
    """Power-off, reset and, where there is an IOAPIC, the power button."""
    IOAPIC = auto()
    RTC = auto()
    I8042 = auto()
    PCI = auto()
    PRIVILEGED = auto()
    """May make the toolstack's hypercalls."""
    INITIAL_DOMAIN = auto()
    """Is domain 0, and says so."""


_PVH = Feature.LAPIC | Feature.ACPI_PM
_CHIPSET = Feature.IOAPIC | Feature.RTC | Feature.I8042 | Feature.PCI
COMBINATIONS: dict[str, Feature] = {
    "pvh-domU": _PVH,
    "pvh-dom0": _PVH | _CHIPSET | Feature.PRIVILEGED | Feature.INITIAL_DOMAIN,
}
"""The combinations that pyvmm builds, by the name that users know."""


def named(features: Feature) -> str:
    """The name of a combination.  UsageError for one that pyvmm does not build."""
    for name, combination in COMBINATIONS.items():
        if combination == features:
            return name
    raise UsageError(f"no domain can have exactly {features}; the combinations are {', '.join(COMBINATIONS)}")
