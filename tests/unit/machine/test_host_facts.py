"""What a dom0's tools may know of the host."""

import os

from vmm.kvm import CpuidEntry
from vmm.machine.host_facts import gather

CPUID = [
    CpuidEntry(0, None, 0xD, 0x68747541, 0x444D4163, 0x69746E65),
    CpuidEntry(1, None, 0x00A20F12, 0, 0x11, 0x22),
    CpuidEntry(7, 0, 0, 0x33, 0x44, 0),
    CpuidEntry(0xD, 1, 0x55, 0, 0, 0),
    CpuidEntry(0x8000_0001, None, 0, 0, 0x66, 0x77),
]


def test_the_facts_are_those_of_this_machine() -> None:
    facts = gather(CPUID, 2600000)
    assert len(facts.cpus) == len(facts.idle_ns) >= 1
    assert facts.cpu_khz == 2600000
    assert 0 < facts.free_pages < facts.total_pages == os.sysconf("SC_PHYS_PAGES")
    assert facts.threads_per_core * facts.cores_per_socket <= len(facts.cpus)


def test_maker_family_model_and_features_are_what_cpuid_says() -> None:
    facts = gather(CPUID, 1)
    assert (facts.vendor, facts.family, facts.model, facts.stepping) == (b"AuthenticAMD", 0x19, 0x21, 2)
    assert facts.capabilities == (0x22, 0x11, 0x77, 0x66, 0x55, 0x33, 0x44, 0)
