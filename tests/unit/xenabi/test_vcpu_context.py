"""First states of secondary vCPUs: what is taken, what is refused."""

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fakes import Domain
from vmm.xenabi.constants import Hypercall, ShutdownReason, VcpuHvmMode
from vmm.xenabi.cstruct import Abi
from vmm.xenabi.hypercalls import dispatch
from vmm.xenabi.structs import VcpuHvmContext, VcpuHvmX86, VcpuHvmX86_64
from vmm.xenabi.values import XenError
from vmm.xenabi.vcpu_context import EFER_LMA, EFER_LME, VcpuContext, from_32, from_64

LONG_MODE = {"cr0": 0x80050033, "cr4": 0x20, "efer": EFER_LME, "rip": 0x100000, "rsp": 0x9000}
FLAT: dict[str, int] = {
    "eip": 0x100000, "esi": 7, "cr0": 0x11, "cs_ar": 0xC9B, "ds_ar": 0xC93, "ss_ar": 0xC93, "es_ar": 0, "tr_ar": 0x8B,
    **{f"{name}_limit": 0xFFFF_FFFF for name in ("cs", "ds", "ss", "es")}, "tr_limit": 0x67,
}  # fmt: skip
ARGUMENT = 0x2000


@pytest.fixture
def domain() -> Domain:
    made = Domain()
    made.vcpus[1].online = False
    return made


def initialise(domain: Domain, mode: int, registers: bytes, abi: Abi = Abi.X86_64) -> int:
    context = VcpuHvmContext(mode=mode, cpu_regs=registers)
    domain.vcpus[0].write_virtual(ARGUMENT, context.pack(abi))
    return dispatch(domain.call(Hypercall.vcpu_op, 0, 1, ARGUMENT, abi=abi))


def test_long_mode_state_sets_lma_and_64_bit_code() -> None:
    context = from_64(VcpuHvmX86_64(**LONG_MODE))
    assert (context.rip, context.general[4], context.efer) == (0x100000, 0x9000, EFER_LME | EFER_LMA)
    assert context.cs.attributes == 0xA9B


@pytest.mark.parametrize("field", ["cr0", "cr4", "efer"])
def test_64_bit_mode_without_paging_is_einval(field: str) -> None:
    with pytest.raises(XenError) as refusal:
        from_64(VcpuHvmX86_64(**{**LONG_MODE, field: 0}))
    assert refusal.value.code == errno.EINVAL


def test_address_that_is_not_canonical_is_einval() -> None:
    with pytest.raises(XenError):
        from_64(VcpuHvmX86_64(**{**LONG_MODE, "rip": 1 << 47}))


def test_flat_32_bit_state_is_taken_as_it_is() -> None:
    context = from_32(VcpuHvmX86(**FLAT))
    assert (context.rip, context.general[6], context.cs.last_byte, context.es.is_present) == (
        0x100000,
        7,
        0xFFFF_FFFF,
        False,
    )


@pytest.mark.parametrize(
    "change",
    [
        {"cs_ar": 0xC93},  # data where there has to be code
        {"cs_ar": 0},
        {"cs_ar": 0xC1B},  # not present
        {"ss_ar": 0xC9B},
        {"ds_ar": 0xC99},  # code that cannot be read
        {"tr_ar": 0x89},  # a task that is not busy
        {"cs_ar": 0x1C9B},  # bits that must be blank
        {"cs_limit": 0xFFF, "cs_ar": 0x49B},  # too short for EIP
        {"pad1": 1},
        {"cr0": 1 << 31},
        {"efer": 1 << 12},  # SVME
        {"eflags": 1 << 17},  # VM
    ],
)
def test_32_bit_state_that_no_cpu_has_is_einval(change: dict[str, int]) -> None:
    with pytest.raises(XenError) as refusal:
        from_32(VcpuHvmX86(**{**FLAT, **change}))
    assert refusal.value.code == errno.EINVAL


@given(st.binary(min_size=120, max_size=120), st.integers(0, 3), st.sampled_from(list(Abi)))
def test_any_state_is_taken_or_einval(registers: bytes, mode: int, abi: Abi) -> None:
    domain = Domain()
    assert initialise(domain, mode, registers, abi) in (0, -errno.EINVAL)
    assert isinstance(domain.vcpus[1].context, VcpuContext | None)


@pytest.mark.parametrize("abi", Abi, ids=lambda abi: abi.name)
def test_initialise_works_once_in_both_abis(domain: Domain, abi: Abi) -> None:
    registers = VcpuHvmX86(**FLAT).pack(abi)
    assert initialise(domain, VcpuHvmMode.B32, registers, abi) == 0
    assert initialise(domain, VcpuHvmMode.B32, registers, abi) == -errno.EEXIST


def test_up_needs_a_first_state(domain: Domain) -> None:
    assert dispatch(domain.call(Hypercall.vcpu_op, 1, 1)) == -errno.EINVAL
    assert dispatch(domain.call(Hypercall.vcpu_op, 1, 2)) == -errno.ENOENT
    initialise(domain, VcpuHvmMode.B64, VcpuHvmX86_64(**LONG_MODE).pack().ljust(120, b"\0"))
    assert dispatch(domain.call(Hypercall.vcpu_op, 1, 1)) == 0
    assert dispatch(domain.call(Hypercall.vcpu_op, 3, 1)) == 1


def test_last_vcpu_that_goes_down_powers_off(domain: Domain) -> None:
    domain.vcpus[1].online = True
    assert dispatch(domain.call(Hypercall.vcpu_op, 2, 1)) == 0
    assert domain.ended == []
    assert dispatch(domain.call(Hypercall.vcpu_op, 2, 0)) == 0
    assert domain.ended == [ShutdownReason.poweroff]
