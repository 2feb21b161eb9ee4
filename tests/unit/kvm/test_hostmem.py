"""Host memory for guests: bytes that move from one mapping to another."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.kvm import PAGE_BYTES, HostMemory, PageFile, hostmem
from vmm.kvm.hostmem import HUGE_PAGE_BYTES

HUGE_PAGES = 4
SIZE_BYTES = HUGE_PAGES * HUGE_PAGE_BYTES
MARK = 0x5A


def filled() -> HostMemory:
    """Every page starts with its own number, and every byte behind is the mark."""
    memory = HostMemory(SIZE_BYTES, huge_pages=True)
    memory.view[:] = bytes([MARK]) * SIZE_BYTES
    for page in range(SIZE_BYTES // PAGE_BYTES):
        memory.view[page * PAGE_BYTES : page * PAGE_BYTES + 4] = page.to_bytes(4, "little")
    return memory


FILLED = bytes(filled().view)
places = st.one_of(st.integers(0, HUGE_PAGES).map(lambda page: page * HUGE_PAGE_BYTES), st.integers(0, SIZE_BYTES))


@settings(max_examples=40)
@given(start=places, other_start=places, size=places)
def test_bytes_come_from_anywhere_to_anywhere_and_nothing_beside_them_changes(
    start: int, other_start: int, size: int
) -> None:
    size = min(size, SIZE_BYTES - start, SIZE_BYTES - other_start)
    source, target = filled(), HostMemory(SIZE_BYTES, huge_pages=True)
    try:
        expected = bytearray(SIZE_BYTES)
        expected[start : start + size] = source.view[other_start : other_start + size]
        target.take(start, source, other_start, size)
        assert target.view == expected
        assert bytes(source.view[:other_start]) == FILLED[:other_start]
        assert bytes(source.view[other_start + size :]) == FILLED[other_start + size :]
    finally:
        source.close()
        target.close()


def test_whole_huge_pages_are_moved_and_not_copied() -> None:
    source, target = filled(), HostMemory(SIZE_BYTES, huge_pages=True)
    target.take(HUGE_PAGE_BYTES, source, 0, 2 * HUGE_PAGE_BYTES + PAGE_BYTES)
    assert not any(source.view[: 2 * HUGE_PAGE_BYTES])
    assert bytes(source.view[2 * HUGE_PAGE_BYTES :]) == FILLED[2 * HUGE_PAGE_BYTES :]
    source.close()
    assert bytes(target.view[HUGE_PAGE_BYTES:][: 2 * HUGE_PAGE_BYTES]) == FILLED[: 2 * HUGE_PAGE_BYTES]
    target.close()


def test_memory_of_a_file_is_copied_to() -> None:
    file = PageFile("pyvmm-test", SIZE_BYTES // PAGE_BYTES)
    source, target = filled(), HostMemory(SIZE_BYTES, huge_pages=True, file=file)
    target.take(0, source, 0, SIZE_BYTES)
    assert bytes(target.view) == bytes(source.view) == FILLED
    for each in (source, target, file):
        each.close()


def test_a_kernel_that_does_not_move_pages_has_them_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        MREMAP_DONTUNMAP = 1 << 30  # a flag that no kernel knows, as this one is to kernels before 5.7

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    real = hostmem.lib
    source, target = filled(), HostMemory(SIZE_BYTES, huge_pages=True)
    monkeypatch.setattr(hostmem, "lib", Old())
    target.take(0, source, 0, SIZE_BYTES)
    assert bytes(target.view) == FILLED
    monkeypatch.undo()
    source.close()
    target.close()


def test_bytes_are_written_within_a_mapping_only() -> None:
    memory = HostMemory(PAGE_BYTES)
    memory.write(PAGE_BYTES - 3, b"end")
    assert bytes(memory.view[-4:]) == b"\0end"
    for offset in (-1, PAGE_BYTES - 2):
        with pytest.raises(ValueError, match="beyond the mapping"):
            memory.write(offset, b"end")
    memory.close()
