"""What this machine says of its CPUs, and what follows."""

import pytest

from vmm.host import cpuinfo


@pytest.mark.parametrize(
    ("flags", "model", "why"),
    [
        ("fpu vmx", "Intel(R) Xeon(R)", ""),
        ("fpu svm", "AMD EPYC", ""),
        ("fpu", "Intel(R) Xeon(R)", "emulates kernel code"),
        ("fpu svm", "QEMU TCG CPU version 2.5+", "accessed bits in PDPTEs"),
    ],
)
def test_pae_needs_a_cpu_that_runs_it(monkeypatch: pytest.MonkeyPatch, flags: str, model: str, why: str) -> None:
    monkeypatch.setattr(cpuinfo, "first_cpu", {"flags": flags, "model name": model}.__getitem__)
    lack = cpuinfo.lack_for_pae()
    assert bool(lack) == bool(why)
    assert why in lack
