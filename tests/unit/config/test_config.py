"""What users may ask for, and how they are told what not."""

from pathlib import Path

import pytest

from vmm.config.domain import DomainConfig, host_memory_bytes, parse_size, parse_xen_version
from vmm.config.features import COMBINATIONS, Feature, named
from vmm.errors import UsageError


@pytest.mark.parametrize(
    ("text", "size"), [("512", 512 << 20), ("512M", 512 << 20), ("2G", 2 << 30), ("2GiB", 2 << 30), ("65536k", 64 << 20)]
)
def test_sizes_are_read_as_xl_and_qemu_read_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-5", "lots", "5X", "1.5G"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


def test_xen_versions_are_read() -> None:
    assert parse_xen_version("4.17.7") == (4, 17, ".7")
    assert parse_xen_version("4.20-rc1") == (4, 20, "-rc1")
    for text in ("4", "x.y", "4.17.", "99999.1", "4.17.7777777777777777"):
        with pytest.raises(UsageError, match="Xen version"):
            parse_xen_version(text)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"memory_bytes": 1 << 20}, "too little"),
        ({"memory_bytes": host_memory_bytes() + 4096}, "more than this host has"),
        ({"memory_bytes": (64 << 20) + 1}, "whole pages"),
        ({"vcpus": 0}, "1 to 128"),
        ({"vcpus": 129}, "1 to 128"),
        ({"name": "a/b"}, "--name"),
    ],
)
def test_impossible_domains_are_refused_with_their_reason(change: dict[str, object], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        DomainConfig(Path("image"))._replace(**change).checked()  # type: ignore[arg-type]


def test_only_named_feature_combinations_are_built() -> None:
    assert named(COMBINATIONS["pvh-domU"]) == "pvh-domU"
    assert named(COMBINATIONS["pvh-dom0"]) == "pvh-dom0"
    with pytest.raises(UsageError, match="pvh-domU"):
        named(Feature.LAPIC | Feature.PCI)
