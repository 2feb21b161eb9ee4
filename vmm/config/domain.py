"""DomainConfig: what a user asks for, checked before anything is built."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from vmm.config.features import COMBINATIONS, Feature
from vmm.config.shape import MAX_VCPUS, Shape, XenVersion
from vmm.devices.kind import Bus, Spec
from vmm.errors import UsageError
from vmm.xenabi.transport import Transport

MIN_MEMORY_BYTES = 4 << 20
_UNITS = {"": 20, "k": 10, "m": 20, "g": 30, "t": 40}


class DomainConfig(NamedTuple):
    """One domain: its image, its resources, and how it is wired.  Build it with `checked`."""

    image: Path
    initrd: Path | None = None
    command_line: str = ""
    memory_bytes: int = 512 << 20
    vcpus: int = 1
    max_vcpus: int | None = None
    name: str = "guest"
    console: str = "stdio"
    serial: str = "none"
    transport: Transport | None = None
    kvm_xen: bool = True
    xen_version: XenVersion = XenVersion()
    devices: tuple[Spec, ...] = ()
    """In the order in which they are attached."""
    features: Feature = COMBINATIONS["pvh-domU"]
    own_xenstore: bool = False
    """Whether the initial domain runs xenstored itself, as on Xen; else pyvmm serves its xenstore, too."""

    @property
    def possible_vcpus(self) -> int:
        """The vCPUs that the guest is made with; those beyond `vcpus` wait to be plugged in."""
        return max(self.vcpus, self.max_vcpus or 0)

    @property
    def initial(self) -> bool:
        """Whether this is the initial, privileged domain: dom0."""
        return Feature.INITIAL_DOMAIN in self.features

    def shape(self, *, shareable: bool = False) -> Shape:
        """What a domain for it is made with; `shareable`: other domains may map its memory."""
        return Shape(
            name=self.name,
            memory_bytes=self.memory_bytes,
            vcpus=self.possible_vcpus,
            features=self.features,
            shareable=shareable,
            xen_version=self.xen_version,
        )

    def checked(self) -> "DomainConfig":
        """This configuration, or UsageError with the first thing that cannot be meant."""
        host = host_memory_bytes()
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise UsageError(
                f"--memory {self.memory_bytes >> 10}K is too little: a guest needs at least {MIN_MEMORY_BYTES >> 20}M"
            )
        if self.memory_bytes > host:
            raise UsageError(f"--memory {self.memory_bytes >> 20}M is more than this host has ({host >> 20}M)")
        if self.memory_bytes % 4096:
            raise UsageError("--memory must be whole pages of 4K")
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise UsageError(f"--vcpus takes 1 to {MAX_VCPUS}, not {self.vcpus}")
        if self.max_vcpus is not None and not self.vcpus <= self.max_vcpus <= MAX_VCPUS:
            raise UsageError(f"--max-vcpus takes {self.vcpus} (--vcpus) to {MAX_VCPUS}, not {self.max_vcpus}")
        if self.transport is Transport.KVM_XEN and not self.kvm_xen:
            raise UsageError("--no-kvm-xen and --transport kvm-xen exclude each other")
        if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,64}", self.name):
            raise UsageError(f"--name takes up to 64 letters, digits and _.+-, not {self.name!r}")
        if not self.devices:
            return self
        self._check_devices()
        return self

    def _check_devices(self) -> None:
        from vmm.devices.kinds import kind_of

        bus = Bus.PCI if Feature.PCI in self.features else Bus.XENBUS
        seen: dict[tuple[str, object], Spec] = {}
        for spec in self.devices:
            kind = kind_of(spec)
            if bus not in kind.open:
                raise UsageError(
                    f"a dom0 has PCI devices only, so --{kind.name} (and --root host) is for other guests: use --disk"
                )
            for key in (("number", kind.handle(spec)), ("tag", getattr(spec, "tag", None))):
                if key[1] is None:
                    continue
                if (kind.name, key) in seen:
                    what = kind.named(int(str(key[1]))) if key[0] == "number" else repr(key[1])
                    raise UsageError(
                        f"two {kind.noun}s are both {what}; give one of them another name: --{kind.name} PATH,"
                        f"{'name=xvdz' if key[0] == 'number' else 'tag=NAME'}"
                    )
                seen[kind.name, key] = spec


def parse_size(text: str) -> int:
    """Bytes from `512`, `512M`, `2G` (a bare number is MiB, as for xl and QEMU).  UsageError."""
    match = re.fullmatch(r"(-?\d+)([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write 512M or 2G")
    value = int(match[1]) << _UNITS[match[2]]
    if value <= 0:
        raise UsageError(f"{text!r} is not a size that a guest can have")
    return value


def parse_xen_version(text: str) -> XenVersion:
    """`4.17.7`, or `4.17`, or `4.17-rc1`.  UsageError."""
    match = re.fullmatch(r"(\d{1,5})\.(\d{1,5})([.\-+].{1,14}|)", text)
    if match is None or int(match[1]) > 0xFFFF or int(match[2]) > 0xFFFF:
        raise UsageError(f"{text!r} is not a Xen version; write it like 4.17.7")
    return XenVersion(int(match[1]), int(match[2]), match[3])


def host_memory_bytes() -> int:
    """All of the host's RAM."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_name() -> str:
    """What a guest is called that nobody has named."""
    return f"guest-{os.getpid()}"


def default_image() -> Path:
    """$PYVMM_KERNEL, else the running kernel's own file; UsageError where that is not in the usual place."""
    if chosen := os.environ.get("PYVMM_KERNEL"):
        return Path(chosen)
    image = Path(f"/boot/vmlinuz-{os.uname().release}")
    if not image.exists():
        raise UsageError(
            f"no IMAGE was given, and this host's own kernel is not at {image}; "
            "give a vmlinux or vmlinuz, or set PYVMM_KERNEL"
        )
    return image
