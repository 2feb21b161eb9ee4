"""The hypercall page, and finding vmcall sites by shape."""

from hypothesis import given
from hypothesis import strategies as st

from vmm.xenabi.constants import Hypercall
from vmm.xenabi.transport import PORT, find_hypercall_pairs, find_hypercall_pairs_32, hypercall_page, patch_for

VMCALL, VMMCALL, RET, ENDBR = b"\x0f\x01\xc1", b"\x0f\x01\xd9", b"\xc3", b"\xf3\x0f\x1e\xfa"


def function(body: bytes) -> bytes:
    return body.ljust(16, b"\xcc")


def test_page_entry_loads_its_number_writes_the_port_and_returns() -> None:
    page = hypercall_page()
    assert len(page) == 4096
    assert page[17 * 32 : 17 * 32 + 8] == bytes([0xB8, 17, 0, 0, 0, 0xE6, PORT, 0xC3])
    assert page[Hypercall.iret * 32 : Hypercall.iret * 32 + 2] == b"\x0f\x0b"


def test_patch_keeps_the_length() -> None:
    assert len(patch_for(VMCALL)) == len(VMCALL)


def test_pair_is_found_with_and_without_endbr_and_with_a_return_thunk() -> None:
    for lead in (b"", ENDBR):
        for end in (RET, b"\xe9\0\0\0\0"):
            code = b"\x90" * 64 + function(lead + VMMCALL + end) + function(lead + VMCALL + end) + b"\x90" * 64
            assert find_hypercall_pairs(code, 0, len(code), 0x1000000) == [(64 + len(lead), 80 + len(lead))]


def test_pair_is_found_in_the_other_order_and_with_a_gap() -> None:
    code = function(VMCALL + RET) + function(b"") + function(VMMCALL + RET)
    assert find_hypercall_pairs(code, 0, len(code), 0) == [(32, 0)]


def test_32_bit_code_has_its_pair_side_by_side_wherever_it_stands() -> None:
    for order in ((VMMCALL, VMCALL), (VMCALL, VMMCALL)):
        code = b"\x90" * 5 + order[0] + RET + order[1] + RET
        vmmcall, vmcall = (5, 9) if order[0] == VMMCALL else (9, 5)
        assert find_hypercall_pairs_32(code, 0, len(code)) == [(vmmcall, vmcall)]
        assert find_hypercall_pairs_32(code, 6, len(code)) == [], "it begins before"
    assert find_hypercall_pairs_32(VMMCALL + b"\x90" + VMCALL + RET, 0, 8) == [], "no function"


def test_look_alikes_are_not_taken() -> None:
    unaligned = b"\x90" * 8 + function(VMMCALL + RET) + function(VMCALL + RET)
    assert find_hypercall_pairs(unaligned, 0, len(unaligned), 0) == []
    alone = function(VMCALL + RET) + function(b"\x90")
    assert find_hypercall_pairs(alone, 0, len(alone), 0) == []
    in_a_larger_function = function(VMMCALL + b"\x48\x89\xc3") + function(VMCALL + b"\x48\x89\xc3")
    assert find_hypercall_pairs(in_a_larger_function, 0, len(in_a_larger_function), 0) == []


def test_a_segment_is_searched_within_its_bounds() -> None:
    code = function(VMMCALL + RET) + function(VMCALL + RET)
    assert find_hypercall_pairs(code, 16, len(code), 16) == []
    assert find_hypercall_pairs(code, 0, 16, 0) == []


@given(st.binary(max_size=200))
def test_any_bytes_give_only_pairs_of_the_two_instructions(code: bytes) -> None:
    for vmmcall, vmcall in find_hypercall_pairs(code, 0, len(code), 0):
        assert code[vmmcall : vmmcall + 3] == VMMCALL
        assert code[vmcall : vmcall + 3] == VMCALL
