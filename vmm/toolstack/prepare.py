"""From what a user asks for to what a guest starts from: its image, its initrd, its command line."""

import os
from pathlib import Path
from typing import NamedTuple

from vmm.boot.elf import ElfImage
from vmm.boot.image import Loading, load_image, open_file
from vmm.boot.pvh import Module
from vmm.config.domain import DomainConfig
from vmm.config.features import Feature
from vmm.devices.kind import Bus
from vmm.errors import HostError
from vmm.host import log
from vmm.host.cpuinfo import lack_for_pae

_HOST_ROOT = "root=host rootfstype=9p rootflags=trans=xen,version=9p2000.L,cache=loose,msize=262144 ro"


class Start(NamedTuple):
    """What is to be started, beside the domain's own configuration."""

    command: str | None = None
    """A shell command, instead of a shell."""
    default_initrd: bool = True
    modules: Path | None = None
    host_root: bool = False
    agent: bool = False
    """Whether the default initrd answers on a channel, for `vmm.testing`."""
    gdb: str | None = None
    """Where GDB may attach; with `,wait` behind it the guest starts when GDB says so."""


class Prepared(NamedTuple):
    """What a guest starts from, and whether its initrd is pyvmm's own."""

    config: DomainConfig
    image: ElfImage
    modules: list[Module]
    own_initrd: bool


def prepare(config: DomainConfig, start: Start, loading: Loading | None = None) -> Prepared:
    """Open the files, the image's where it is not on its way already, and make what is missing.  PyvmmError."""
    if start.host_root:
        config = config._replace(command_line=f"{_HOST_ROOT} {config.command_line}".strip())
    image = load_image(config.image) if loading is None else loading.image()
    if image.is_linux and image.bits == 32 and (lack := lack_for_pae()):
        raise HostError(f"{image.name} is a 32-bit kernel, which this host cannot run: {lack}; use one with VT-x or AMD-V")
    modules: list[Module] = []
    own_initrd = False
    if config.initrd is not None:
        modules = [Module(f"the initrd {config.initrd}", memoryview(open_file(config.initrd, "initrd")))]
    elif start.default_initrd and (image.is_linux or start.command is not None):
        modules = [Module("the initrd made of busybox", memoryview(_initramfs(config, start, image)))]
        own_initrd = True
    if image.is_linux:
        config = config._replace(command_line=linux_command_line(config.command_line, start.command))
    return Prepared(config, image, modules, own_initrd)


def _initramfs(config: DomainConfig, start: Start, image: ElfImage) -> bytes:
    from vmm.boot.initramfs import Root, WindowSize, command_initramfs, dhcp_script, shell_initramfs

    root, modules = Root.NONE, _modules(config, start) if image.is_linux else []
    if any(word.startswith("root=") for word in config.command_line.split()):
        root = Root.SWITCH if start.command is None and not start.host_root else Root.STAY
    nets = [spec for spec in config.devices if spec.device == "net"]
    network = dhcp_script([f"eth{index}" for index, net in enumerate(nets) if getattr(net, "kind", "") == "user"])
    if start.command is not None:
        from vmm.devices.chips.exit_port import EXIT_PORT

        return command_initramfs(
            start.command, EXIT_PORT, plain_newlines=not os.isatty(0), root=root, modules=modules, network=network,
            bits=image.bits,
        )  # fmt: skip
    window = WindowSize(*reversed(os.get_terminal_size(0))) if os.isatty(0) and not start.agent else None
    return shell_initramfs(window, root, modules, network, image.bits, agent=start.agent)


def _modules(config: DomainConfig, start: Start) -> list[tuple[str, bytes]]:
    """The drivers that the guest needs for its devices, where its kernel has them as modules."""
    bus = Bus.PCI if Feature.PCI in config.features else Bus.XENBUS
    names: list[str] = []
    for spec in config.devices:
        from vmm.devices.kinds import kind_of

        names += (name for name in kind_of(spec).modules[bus] if name not in names)
    if config.initial:
        names += ["xen_evtchn", "xen_gntdev", "xen_gntalloc", "xen_privcmd", "xenfs", "button"]
        names += ["virtio_pci"] if config.devices else []
    names += [word.partition("=")[2] for word in config.command_line.split() if word.startswith("rootfstype=")]
    if not names:
        return []
    from vmm.boot.modules import ModuleFolder, module_folder

    folder = start.modules or module_folder(config.image)
    if folder is None:
        log.get(__name__).warning(
            "no modules for this kernel are known, so the guest has only the drivers that are built in: give --modules DIR"
        )
        return []
    return ModuleFolder(folder).closure(names)


def linux_command_line(append: str, command: str | None) -> str:
    """What a kernel developer means: the Xen console unless another is named, and silence around a command's output."""
    words = append.split()
    defaults = [] if any(word.startswith("console=") for word in words) else ["console=hvc0"]
    chatty = ("loglevel=", "ignore_loglevel", "debug", "earlyprintk")
    if command is not None and not any(word.startswith(chatty) for word in words):
        defaults += ["quiet", "loglevel=1"]  # 0 would silence panics and oopses for good
    return " ".join([*defaults, append] if append else defaults)
