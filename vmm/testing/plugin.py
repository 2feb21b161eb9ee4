"""The pytest plugin: fixtures `guest` and `boot_guest`, a marker `guest` for what they boot, markers for what a host needs.

Loaded by its entry point; it imports nothing of pyvmm until a test asks for a guest.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from vmm.testing.guest import Guest

_NEEDS = {
    "needs_kvm": "skip where /dev/kvm cannot be opened",
    "needs_hardware_virt": "skip where the CPU has no VT-x or AMD-V, without which Linux does not get far",
    "needs_kvm_xen": "skip where the host's KVM has no KVM_XEN",
}
_TRACE_LINES = 100
_CONSOLE_CHARACTERS = 50_000
_PARAMETERS = ("kernel", "vcpus", "transport")
_STASH = pytest.StashKey[list[Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--guest-kernel, any number of times."""
    group = parser.getgroup("pyvmm")
    group.addoption(
        "--guest-kernel",
        action="append",
        default=[],
        metavar="IMAGE",
        help="the kernels that `guest` and `boot_guest` boot (default: $PYVMM_KERNEL, else the running kernel's own)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The markers."""
    config.addinivalue_line(
        "markers", "guest(kernel=[...], vcpus=[...], transport=[...], **options): what `guest` and `boot_guest` boot"
    )
    for name, meaning in _NEEDS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Once for each kernel, number of vCPUs and transport that the marker lists."""
    if "_guest_options" not in metafunc.fixturenames:  # a test may have a fixture `guest` of its own
        return
    marker = metafunc.definition.get_closest_marker("guest")
    given = dict(marker.kwargs) if marker is not None else {}
    kernels = metafunc.config.getoption("--guest-kernel") or [os.environ.get("PYVMM_KERNEL")]
    combinations: list[dict[str, Any]] = [{}]
    for name in _PARAMETERS:
        values = given.get(name, kernels if name == "kernel" else [None])
        values = list(values) if isinstance(values, list | tuple) else [values]
        combinations = [one | ({name: value} if value is not None else {}) for one in combinations for value in values]
    metafunc.parametrize(
        "_guest_options", combinations, ids=["-".join(map(_name, one.values())) or "default" for one in combinations]
    )


def _name(value: object) -> str:
    return Path(value).name if isinstance(value, str | Path) else str(value)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the host cannot run, and say why."""
    for name in _NEEDS:
        if item.get_closest_marker(name) is not None and (reason := missing(name)) is not None:
            pytest.skip(reason)


def missing(need: str) -> str | None:
    """Why this host has not got what a marker names; None where it has."""
    from vmm.errors import PyvmmError
    from vmm.host.cpuinfo import cpu_flags
    from vmm.kvm import System, XenFlag

    try:
        system = System()
    except PyvmmError as error:
        return str(error)
    try:
        if need == "needs_hardware_virt" and not {"vmx", "svm"} & cpu_flags():
            return "the CPU shows neither VT-x nor AMD-V; use a host that has them, or nested virtualisation"
        if need == "needs_kvm_xen" and XenFlag.INTERCEPT_HCALL not in system.xen_flags():
            return "this host's kernel was built without CONFIG_KVM_XEN"
    finally:
        system.close()
    return None


@pytest.fixture
def _guest_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(getattr(request, "param", {}))


@pytest.fixture
def boot_guest(request: pytest.FixtureRequest, _guest_options: dict[str, Any]) -> Iterator[Callable[..., "Guest"]]:
    """Start guests: `boot_guest(vcpus=2, append="debug")`, as for `vmm.Guest`; they end with the test."""
    from vmm.errors import HostError
    from vmm.testing.guest import Guest

    marker = request.node.get_closest_marker("guest")
    options = {key: value for key, value in (marker.kwargs if marker else {}).items() if key not in _PARAMETERS}
    started: list[Guest] = []
    request.node.stash[_STASH] = started

    def boot(kernel: str | Path | None = None, **more: Any) -> Guest:
        chosen = options | _guest_options | more
        if kernel is not None:
            chosen["kernel"] = kernel
        try:
            made = Guest(**chosen)
            started.append(made)
            return made.start()
        except HostError as error:
            pytest.skip(str(error))

    yield boot
    for guest in started:
        guest.close()


@pytest.fixture
def guest(boot_guest: Callable[..., "Guest"]) -> "Guest":
    """One guest, started as the test's marker `guest` says."""
    return boot_guest()


@pytest.hookimpl(hookwrapper=True)  # the older kind: Debian 12's pytest knows no other
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """A test that fails shows its guests' consoles and the ends of their traces."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed:
        guests: list[Any] = item.stash.get(_STASH, [])
        for number, one in enumerate(guests):
            report.sections.append((f"console of guest {number}", one.console.text[-_CONSOLE_CHARACTERS:]))
            report.sections.append((f"trace of guest {number}", one.trace_text(_TRACE_LINES)))
