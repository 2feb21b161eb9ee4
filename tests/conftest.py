"""Fixtures for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guests import MICRO, assemble
from vmm.errors import PyvmmError
from vmm.kvm import System, XenFlag
from vmm.toolstack.transports import plan_hypercalls  # noqa: F401  (imported early: the first import is slow in an L1)
from vmm.xenabi.transport import Transport


@pytest.fixture(scope="session")
def system() -> System:
    """The host's KVM; the tests that need it are skipped where there is none."""
    try:
        found = System()
    except PyvmmError as error:
        pytest.skip(f"no KVM: {error}")
    return found


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Assemble a micro-guest, once a session."""
    folder = tmp_path_factory.mktemp("guests")

    def build_once(name: str) -> Path:
        image = folder / name
        if not image.exists():
            assemble(MICRO / f"{name}.S", image)
        return image

    return build_once


def _available(transport: Transport, system: System) -> Transport:
    if transport is Transport.KVM_XEN and XenFlag.INTERCEPT_HCALL not in system.xen_flags():
        pytest.skip("transport kvm-xen: this host's KVM has no KVM_XEN")
    return transport


@pytest.fixture(params=[Transport.KVM_XEN, Transport.PAGE], ids=str)
def page_transport(request: pytest.FixtureRequest, system: System) -> Transport:
    """The transports of a guest that asks for the hypercall page."""
    return _available(request.param, system)


@pytest.fixture(params=[Transport.KVM_XEN, Transport.PATCH], ids=str)
def direct_transport(request: pytest.FixtureRequest, system: System) -> Transport:
    """The transports of a guest that executes vmcall or vmmcall itself."""
    return _available(request.param, system)
