"""What `ci/real-xen run` makes of its command line."""

import sys
from pathlib import Path

import pytest

from scripts.benchmarks.monitors import ROOT
from tests.unit.images import good

sys.path.append(str(ROOT / "ci"))

import debian  # type: ignore[import-not-found]
import xen_guest  # type: ignore[import-not-found]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(good())
    return path


def test_a_guest_has_what_its_command_line_names(image: Path, tmp_path: Path) -> None:
    job = xen_guest.guest_job(
        ["-m", "64", "-c", "2", "--disk", "/a,ro", "--disk", "/b", "--append", "it's", str(image)], tmp_path
    )
    lines = (tmp_path / "guest.cfg").read_text().splitlines()
    assert f'kernel = "{image}"' in lines
    assert 'cmdline = "it\'s"' in lines
    assert {"memory = 64", "vcpus = 2", "vif = []", 'type = "pvh"', 'on_crash = "preserve"'} <= set(lines)
    assert 'disk = ["format=raw,vdev=xvda,access=ro,target=/a", "format=raw,vdev=xvdb,access=rw,target=/b"]' in lines
    assert not any(line.startswith("ramdisk") for line in lines)
    assert job[1:] == ["/run/nested/guest.cfg", "guest", ""]


def test_what_xl_cannot_be_told_is_refused(image: Path, tmp_path: Path) -> None:
    with pytest.raises(debian.FetchError, match="both kinds of quotes"):
        xen_guest.guest_job(["--append", "'\"", str(image)], tmp_path)


def test_a_file_that_is_no_image_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(debian.FetchError, match="text"):
        xen_guest.guest_job([str(tmp_path / "text")], tmp_path)
