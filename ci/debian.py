"""Packages of Debian suites other than this machine's own, unpacked into a cache and never installed.

Each suite has its own apt configuration under `CACHE/apt/SUITE`; the archive's address is read from the
machine's own apt configuration.  Needs nothing but Python, apt and dpkg-deb.
"""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("PYVMM_CACHE", ROOT / ".cache"))
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def prefer_venv() -> None:
    """Go on in this checkout's virtual environment, where pyvmm's decompressors are installed, if it has been made."""
    venv = ROOT / ".venv"
    if not sys.prefix.startswith(str(venv)) and (venv / "bin/python").exists():
        os.execv(venv / "bin/python", [str(venv / "bin/python"), *sys.argv])


class FetchError(Exception):
    """A package could not be found, fetched or unpacked; the text says which and why."""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        detail = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise FetchError(f"`{' '.join(command[:1] + command[-2:])}` failed: {detail[-1] if detail else 'no output'}")
    return done.stdout


def archive_address(folder: str) -> str:
    """The address of the Debian archive (`debian`, `debian-security`) that this machine's apt uses."""
    listed = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages").split()
    sites = [site.rstrip("/") for site in listed]
    for site in sites:
        if site.endswith("/" + folder):
            return site
    for site in sites:  # a mirror that carries one archive usually carries its sibling
        if site.endswith("/debian"):
            return site.removesuffix("debian") + folder
    raise FetchError("this machine's apt configuration names no Debian archive")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Held by one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def unpack_once(target: Path, fill: Callable[[Path], None]) -> Path:
    """`target`, filled by `fill` the first time; half-made folders never keep the final name."""
    if target.exists():
        return target
    try:
        with locked(CACHE / "locks" / target.name):
            if not target.exists():
                partial = target.with_name(target.name + ".partial")
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                fill(partial)
                partial.rename(target)
    except OSError as error:
        hint = "; fetch it outside of L1 first" if error.errno == errno.EROFS else ""
        raise FetchError(f"cannot fill the cache at {target}: {error.strerror}{hint}") from None
    return target


class Suite:
    """One Debian suite, read through an apt configuration of its own."""

    def __init__(self, name: str, architecture: str = "amd64") -> None:
        self.name = name
        self.architecture = architecture
        self.folder = CACHE / "apt" / (name if architecture == "amd64" else f"{name}-{architecture}")
        self.config = self.folder / "apt.conf"

    def _prepare(self) -> None:
        with locked(CACHE / "locks" / f"apt-{self.folder.name}"):
            if self.config.exists():
                return
            for part in ("state/lists/partial", "cache/archives/partial", "etc"):
                (self.folder / part).mkdir(parents=True, exist_ok=True)
            base = self.name.removesuffix("-backports")
            sources = [f"{archive_address('debian')} {suite}" for suite in sorted({base, self.name})]
            if base != "sid":
                sources.append(f"{archive_address('debian-security')} {base}-security")
            draft = self.config.with_suffix(".draft")
            draft.write_text(
                f'Dir::State "{self.folder}/state";\n'
                f'Dir::State::status "{"/var/lib/dpkg/status" if self.architecture == "amd64" else "/dev/null"}";\n'
                f'Dir::Cache "{self.folder}/cache";\n'
                f'Dir::Etc::sourcelist "{self.folder}/etc/sources.list";\n'
                'Dir::Etc::sourceparts "/dev/null";\nDir::Etc::preferencesparts "/dev/null";\n'
                'Dir::Etc::preferences "/dev/null";\n'
                f'APT::Architecture "{self.architecture}";\nAPT::Architectures {{ "{self.architecture}"; }};\n'
                'Acquire::Languages "none";\nAPT::Sandbox::User "root";\nAcquire::Check-Valid-Until "false";\n'
                'APT::Install-Recommends "false";\nAcquire::Retries "3";\n'
            )
            try:
                self._update(draft, sources)
            except FetchError:  # a mirror may be behind with one of them: the suite itself will do
                self._update(draft, [source for source in sources if not source.endswith("-security")])
            draft.rename(self.config)

    def _update(self, config: Path, sources: list[str]) -> None:
        listed = "".join(f"deb [signed-by={KEYRING}] {source} main\n" for source in sources)
        (self.folder / "etc/sources.list").write_text(listed)
        _run("apt-get", "-c", str(config), "-qq", "update")

    def _apt(self, tool: str, *arguments: str) -> str:
        self._prepare()
        return _run(tool, "-c", str(self.config), *arguments)

    def names(self, pattern: str) -> list[str]:
        """Package names in this suite that match the whole of a regular expression."""
        listed = self._apt("apt-cache", "pkgnames").split()
        return sorted(name for name in listed if re.fullmatch(pattern, name))

    def with_dependencies(self, package: str) -> list[str]:
        """A package and what it depends on, less what this machine has installed."""
        simulated = self._apt("apt-get", "-s", "-t", self.name, "--no-install-recommends", "install", package)
        return sorted(set(re.findall(r"^Inst (\S+)", simulated, re.M)))

    def unpack(self, packages: Iterable[str], target: Path) -> None:
        """Fetch packages and unpack them all into `target`."""
        archives = target.with_name(target.name + ".debs")
        shutil.rmtree(archives, ignore_errors=True)
        archives.mkdir(parents=True)
        self._prepare()
        done = subprocess.run(
            ["apt-get", "-c", str(self.config), "-qq", "-t", self.name, "download", *packages],
            cwd=archives,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise FetchError(f"cannot fetch from suite {self.name}: {done.stderr.strip().splitlines()[-1]}")
        for archive in sorted(archives.glob("*.deb")):
            _run("dpkg-deb", "-x", str(archive), str(target))
        shutil.rmtree(archives)


# ------------------------------------------------------------------------------------------------ kernels

KERNELS: dict[str, tuple[str, str]] = {
    # name: (suite, flavour suffix of the image package)
    "5.10": ("bullseye", "cloud-amd64"),
    "6.1": ("bookworm", "cloud-amd64"),
    "6.12": ("bookworm-backports", "cloud-amd64"),
    "7.2": ("sid", "cloud-amd64"),
    "5.10-686-pae": ("bullseye", "686-pae"),
    "6.1-686-pae": ("bookworm", "686-pae"),
    "5.10-generic": ("bullseye", "amd64"),
    "6.1-generic": ("bookworm", "amd64"),
    "6.12-generic": ("bookworm-backports", "amd64"),
    "7.2-generic": ("sid", "amd64"),
}


class Kernel:
    """A stock Debian kernel, unpacked in the cache: its image and its module folder."""

    def __init__(self, name: str) -> None:
        if name not in KERNELS:
            raise FetchError(f"no kernel is called {name!r}; there are: {', '.join(KERNELS)}")
        self.name = name
        self.folder = CACHE / "kernels" / name

    @property
    def bits(self) -> int:
        """32 or 64."""
        return 32 if _architecture(KERNELS[self.name][1]) == "i386" else 64

    def fetch(self) -> "Kernel":
        """Fetch and unpack the kernel unless the cache has it."""
        unpack_once(self.folder, self._fill)
        return self

    def _fill(self, folder: Path) -> None:
        suite_name, flavour = KERNELS[self.name]
        version = self.name.partition("-")[0]
        suite = Suite(suite_name, _architecture(flavour))
        release = rf"{re.escape(version)}\.[+.~0-9a-z]*(?:-[0-9]+)?-{flavour}"
        images = suite.names("linux-image-" + release)
        if not images:
            raise FetchError(f"suite {suite_name} holds no Linux {version} ({flavour}) any more")
        for image in sorted(images, key=_version, reverse=True):
            chosen = image.removeprefix("linux-image-")
            try:  # newer suites split the image package in three
                suite.unpack(suite.names("linux-(image|binary|modules)-" + re.escape(chosen)), folder)
            except FetchError as error:  # an index may name what has gone from the archive
                failed = error
            else:
                return
        raise failed

    @property
    def image(self) -> Path:
        """The bzImage."""
        for place in ("boot", "usr/lib/modules/*", "lib/modules/*", "usr/lib/linux*"):
            for found in self.folder.glob(f"{place}/vmlinuz*"):
                return found
        raise FetchError(f"{self.folder} holds no kernel image")

    @property
    def vmlinux(self) -> Path:
        """The plain ELF out of the bzImage, unpacked in the cache; ImportError where its codec is not installed."""
        from vmm.boot.bzimage import payload

        def fill(folder: Path) -> None:
            (folder / "vmlinux").write_bytes(payload(self.image.read_bytes(), str(self.image))[:])

        return unpack_once(CACHE / "vmlinux" / self.name, fill) / "vmlinux"

    @property
    def modules(self) -> Path:
        """The folder that holds `kernel/` and `modules.dep`."""
        for base in ("lib/modules", "usr/lib/modules"):
            for found in (self.folder / base).glob("*"):
                return found
        raise FetchError(f"{self.folder} holds no modules")


def _version(name: str) -> list[int]:
    """The numbers in a name."""
    return [int(part) for part in re.findall(r"[0-9]+", name)]


def _architecture(flavour: str) -> str:
    return "i386" if flavour.startswith("686") else "amd64"


def busybox(bits: int = 64) -> Path:
    """Debian's static busybox, unpacked in the cache."""
    architecture = "amd64" if bits == 64 else "i386"
    folder = CACHE / ("busybox" if bits == 64 else f"busybox-{architecture}")
    suite = Suite("bookworm", architecture)
    return unpack_once(folder, lambda target: suite.unpack(["busybox-static"], target)) / "bin/busybox"
