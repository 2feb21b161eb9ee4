"""pyvmm: a virtual machine monitor that shows guests a Xen-compatible ABI on KVM."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vmm.testing.guest import Guest

__all__ = ["Guest", "__version__"]

__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """`vmm.Guest`, for scripts: imported once somebody wants it, since the command line does not."""
    if name == "Guest":
        from vmm.testing.guest import Guest

        globals()["Guest"] = Guest
        return Guest
    raise AttributeError(f"module 'vmm' has no attribute {name!r}")
