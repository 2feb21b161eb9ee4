"""What a domain has, as flags set once at its creation; only the named combinations are allowed."""

from enum import Flag, auto

from vmm.errors import UsageError


class Feature(Flag):
    """One emulated piece of a PC, or one privilege."""

    LAPIC = auto()
    IOAPIC = auto()
    RTC = auto()
    PCI = auto()
    PRIVILEGED = auto()
    INITIAL_DOMAIN = auto()


COMBINATIONS: dict[str, Feature] = {
    "pvh-domU": Feature.LAPIC,
    "pvh-dom0": (Feature.LAPIC | Feature.IOAPIC | Feature.RTC | Feature.PCI | Feature.PRIVILEGED | Feature.INITIAL_DOMAIN),
}
"""The combinations that pyvmm builds, by the name that users know."""


def named(features: Feature) -> str:
    """The name of a combination.  UsageError for one that pyvmm does not build."""
    for name, combination in COMBINATIONS.items():
        if combination == features:
            return name
    raise UsageError(f"no domain can have exactly {features}; the combinations are {', '.join(COMBINATIONS)}")
