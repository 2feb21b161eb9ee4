"""Walking guest page tables."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmm.machine.memory.paging import PageFault, canonical, pieces, translate

RAM_BYTES = 1 << 20


class Ram:
    """A megabyte; beyond it a walk faults."""

    def __init__(self) -> None:
        self.data = bytearray(RAM_BYTES)

    def read(self, gpa: int, size_bytes: int) -> bytes:
        if gpa + size_bytes > RAM_BYTES:
            raise PageFault(gpa)
        return bytes(self.data[gpa : gpa + size_bytes])

    def put(self, gpa: int, value: int, size_bytes: int = 8) -> None:
        self.data[gpa : gpa + size_bytes] = value.to_bytes(size_bytes, "little")


def registers(*, cr0: int = 0x80010001, cr3: int = 0x1000, cr4: int = 0x20, efer: int = 0x500) -> SimpleNamespace:
    return SimpleNamespace(cr0=cr0, cr3=cr3, cr4=cr4, efer=efer)


@pytest.fixture
def ram() -> Ram:
    """Four levels: 0x400000 and 0x401000 mapped to 0x5000 (writable) and 0x9000 (read-only), 2 MiB at 0x600000."""
    memory = Ram()
    memory.put(0x1000, 0x2007)
    memory.put(0x2000, 0x3007)
    memory.put(0x3000 + 2 * 8, 0x4007)
    memory.put(0x3000 + 3 * 8, 0x80000000 | 0x87)
    memory.put(0x4000, 0x5007)
    memory.put(0x4008, 0x9005)
    return memory


def test_without_paging_an_address_is_itself(ram: Ram) -> None:
    assert translate(ram, registers(cr0=1, efer=0), 0x1234, write=True) == (0x1234, 0x1000 - 0x234)


def test_four_level_walk_finds_small_and_large_pages(ram: Ram) -> None:
    assert translate(ram, registers(), 0x400123, write=True) == (0x5123, 0x1000 - 0x123)
    assert translate(ram, registers(), 0x654321, write=True) == (0x80054321, 0x1000 - 0x321)


def test_write_to_a_read_only_page_faults_only_with_write_protect(ram: Ram) -> None:
    assert translate(ram, registers(), 0x401000, write=False)[0] == 0x9000
    with pytest.raises(PageFault):
        translate(ram, registers(), 0x401000, write=True)
    assert translate(ram, registers(cr0=0x80000001), 0x401000, write=True)[0] == 0x9000


@pytest.mark.parametrize("address", [0x402000, 0x800000, 1 << 39, 1 << 47, (1 << 64) - (1 << 47) - 1])
def test_unmapped_and_non_canonical_addresses_fault(ram: Ram, address: int) -> None:
    with pytest.raises(PageFault):
        translate(ram, registers(), address, write=False)


def test_five_levels_when_la57_is_on(ram: Ram) -> None:
    ram.put(0x8000, 0x1007)
    assert translate(ram, registers(cr3=0x8000, cr4=0x1020), 0x400000, write=False)[0] == 0x5000


def test_pae_outside_long_mode(ram: Ram) -> None:
    ram.put(0xA000, 0x3001)
    assert translate(ram, registers(cr3=0xA000, efer=0), 0x400010, write=False)[0] == 0x5010


def test_two_level_tables_and_4_mib_pages(ram: Ram) -> None:
    ram.put(0xB000 + 4, 0xC007, 4)
    ram.put(0xB000 + 8, 0x00C00087, 4)
    ram.put(0xC000, 0x5007, 4)
    two_level = registers(cr3=0xB000, cr4=0x10, efer=0)
    assert translate(ram, two_level, 0x400004, write=True)[0] == 0x5004
    assert translate(ram, two_level, 0x912345, write=True)[0] == 0xD12345


def test_a_stretch_over_two_pages_comes_in_pieces(ram: Ram) -> None:
    assert list(pieces(ram, registers(), 0x400FF0, 0x20, write=False)) == [(0x5FF0, 0x10), (0x9000, 0x10)]


def test_a_stretch_that_wraps_faults(ram: Ram) -> None:
    with pytest.raises(PageFault):
        list(pieces(ram, registers(cr0=1, efer=0), 0xFFFFFFF0, 0x20, write=False))


@given(st.integers(0, 2**64 - 1))
def test_canonical_is_sign_extension(address: int) -> None:
    signed = address - (1 << 64) if address >> 63 else address
    assert canonical(address, 48) == (-(1 << 47) <= signed < 1 << 47)


@given(
    st.dictionaries(st.integers(0, 511), st.integers(0, 2**64 - 1), max_size=20),
    st.integers(0, 2**64 - 1),
    st.booleans(),
    st.sampled_from([0, 0x10, 0x20, 0x1020]),
)
def test_any_tables_give_an_address_or_a_fault(entries: dict[int, int], address: int, write: bool, cr4: int) -> None:
    memory = Ram()
    for index, entry in entries.items():
        memory.put(index * 8, entry)
    for efer in (0, 0x500):
        try:
            _, room = translate(memory, registers(cr3=0, cr4=cr4, efer=efer), address, write=write)
        except PageFault:
            continue
        assert 0 < room <= 4096
