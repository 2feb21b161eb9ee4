"""`pyvmm doctor`: what this host offers, check by check, and what to do about each lack."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from vmm.errors import PyvmmError
from vmm.host.cpuinfo import cpu_flags, lack_for_pae
from vmm.kvm import CAPABILITIES, System, XenFlag
from vmm.toolstack.transports import plan_hypercalls

KVM = Path("/dev/kvm")


class Check(NamedTuple):
    """One finding: `ok`, whether pyvmm needs it for real kernels, what was found, and what to do if it is lacking."""

    name: str
    ok: bool
    required: bool
    found: str
    advice: str = ""


def diagnose(image: Path | None) -> list[Check]:
    """All checks, in the order in which a lack of one explains the next."""
    checks = [_device(), _hardware()]
    try:
        system = System()
    except PyvmmError as error:
        return [*checks, Check("open", False, True, str(error), "mend this first")]
    try:
        checks += [_capability(system, row.name, row.number, row.required, row.purpose) for row in CAPABILITIES]
        checks.append(_kvm_xen(system))
        if image is not None:
            checks += _image(system, image)
    finally:
        system.close()
    return checks


def _device() -> Check:
    if not KVM.exists():
        return Check(
            "/dev/kvm",
            False,
            True,
            "is not there",
            "load kvm_intel or kvm_amd; in a virtual machine, turn nested virtualisation on",
        )
    if not os.access(KVM, os.R_OK | os.W_OK):
        return Check("/dev/kvm", False, True, "may not be opened by this user", "run as root or join the device's group")
    return Check("/dev/kvm", True, True, "can be opened")


def _hardware() -> Check:
    """Without VT-x or AMD-V a KVM may still be there that emulates kernel code, far too slowly and not wholly."""
    flags = cpu_flags()
    for flag, name in (("vmx", "VT-x"), ("svm", "AMD-V")):
        if flag in flags:
            return Check("virtualisation", True, True, f"the CPU has {name}")
    return Check(
        "virtualisation",
        False,
        True,
        "the CPU shows neither VT-x nor AMD-V: if /dev/kvm is there all the same, it emulates kernel code, "
        "slowly and without CMPXCHG16B, so Linux stops early and a vmcall never returns",
        "use a host, or a virtual machine with nested virtualisation, that shows vmx or svm in /proc/cpuinfo; "
        "small guests that use the hypercall page run here",
    )


def _capability(system: System, name: str, number: int, required: bool, purpose: str) -> Check:
    value = system.capability(number)
    advice = "" if value else ("use Linux 5.10 or later" if required else "pyvmm does without it")
    return Check(name, bool(value), required, f"{value:#x}: {purpose}" if value else f"missing: {purpose}", advice)


def _kvm_xen(system: System) -> Check:
    flags = system.xen_flags()
    names = ", ".join(flag.name or "" for flag in flags) or "none"
    if XenFlag.INTERCEPT_HCALL in flags:
        return Check("KVM_XEN", True, False, f"{names}: transport `kvm-xen`: hypercalls that KVM hands on itself")
    return Check(
        "KVM_XEN",
        False,
        False,
        names if not flags else f"{names}, without INTERCEPT_HCALL",
        "nothing: hypercalls come by page or patch (a host kernel with CONFIG_KVM_XEN, since 5.12, is faster)",
    )


def _image(system: System, image: Path) -> list[Check]:
    from vmm.boot.image import load_image

    try:
        loaded = load_image(image)
        plan = plan_hypercalls(system, loaded, None)
    except PyvmmError as error:
        return [Check("transport", False, True, str(error), "see above")]
    where = ", ".join(f"{site.gpa:#x}" for site in plan.sites)
    found = f"{image} gets {plan.transport}" + (f", patched at {where}" if where else "")
    checks = [Check("transport", True, True, found)]
    if loaded.is_linux and loaded.bits == 32:
        checks += [_pae(image), _busybox_32()]
    return checks


def _pae(image: Path) -> Check:
    lack = lack_for_pae()
    if lack:
        return Check(
            "32-bit kernel", False, True, f"{image} needs a guest with PAE: {lack}", "use a host with VT-x or AMD-V"
        )
    return Check("32-bit kernel", True, True, f"{image} needs a guest with PAE, which runs here")


def _busybox_32() -> Check:
    from vmm.boot.initramfs import find_busybox

    try:
        return Check("32-bit busybox", True, False, f"{find_busybox(32)}, for a guest without an initrd")
    except PyvmmError as error:
        return Check("32-bit busybox", False, False, "none, for a guest without an initrd", str(error))


def print_text(checks: list[Check]) -> None:
    """A line a check, and under each lack what to do."""
    width = max(len(check.name) for check in checks)
    for check in checks:
        mark = "ok  " if check.ok else "FAIL" if check.required else "none"
        print(f"{mark}  {check.name:<{width}}  {check.found}")
        if check.advice:
            print(f"      {'':<{width}}  → {check.advice}")


def print_json(checks: list[Check]) -> None:
    """A list of objects with the fields of `Check`."""
    print(json.dumps([check._asdict() for check in checks], indent=2))
