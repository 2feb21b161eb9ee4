"""Shape: what a domain is made with, before there is anything in it."""

from typing import NamedTuple

from vmm.config.features import COMBINATIONS, Feature
from vmm.xenabi.constants import XEN_EXTRA, XEN_MAJOR, XEN_MINOR

MAX_VCPUS = 128


class XenVersion(NamedTuple):
    """The Xen that the guest is shown."""

    major: int = XEN_MAJOR
    minor: int = XEN_MINOR
    extra: str = XEN_EXTRA


class Shape(NamedTuple):
    """A domain's limits and flags, which stay as they are for its whole life (XEN_DOMCTL_createdomain has most of them)."""

    name: str
    memory_bytes: int
    """RAM that it may have; whole pages."""
    vcpus: int = 1
    """vCPUs that it has, whether they are ever started or not."""
    features: Feature = COMBINATIONS["pvh-domU"]
    event_ports: int = 4096
    """Event channels that it may have, the reserved port 0 among them; at most 4096."""
    grant_frames: int = 64
    """Pages that its grant table may have; at most 64."""
    maptrack_entries: int = 65536
    """Grants that it may have mapped at a time."""
    shareable: bool = False
    """Whether other domains may map its memory: it then lives in files, without huge pages on many hosts."""
    xen_version: XenVersion = XenVersion()

    @property
    def initial(self) -> bool:
        """Whether it is the initial, privileged domain: dom0."""
        return Feature.INITIAL_DOMAIN in self.features
