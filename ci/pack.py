"""File system images of what a job needs, for an L1 that has disks alone: packages, environment and cache, checkout.

Each is ext4 without a journal, made by mke2fs from a folder of links or copies.
"""

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from importlib.util import cache_from_source
from pathlib import Path

from debian import CACHE, ROOT, FetchError, locked

MIB = 1 << 20
PACKAGES = (
    "python3", "python3-venv", "python3-libnbd", "gcc", "gdb", "libc6-dev", "linux-libc-dev", "libxen-dev",
    "busybox-static", "xenstore-utils", "passt", "diod", "qemu-utils", "iproute2", "fio", "iperf3", "e2fsprogs",
    "dmsetup", "procps", "acpica-tools",
    # What the cache's QEMU, which is compared with, is linked with.
    "libaio1", "libbpf1", "libfuse3-3", "libgnutls30", "libglib2.0-0", "libibverbs1", "libjpeg62-turbo", "libnuma1",
    "libpixman-1-0", "libpmem1", "libpng16-16", "librdmacm1", "libsasl2-2", "libseccomp2", "libudev1", "liburing2",
)  # fmt: skip
"""What a job may run, beside what every Debian has; as far as it is installed here."""
LEFT_OUT = re.compile(r"^(apt|bochs|images|locks|l1-|rootfs)|\.(partial|debs)$")
"""Of the cache: what is for this machine alone, and disks of gigabytes."""
_DPKG = Path("/var/lib/dpkg")


def base() -> Path:
    """The image of the packages and /etc, made once for each state of them."""
    packages = _closure(PACKAGES)
    key = "".join(f"{name} {fields.get('Version')}\n" for name, fields in sorted(packages.items()))

    def fill(stage: Path) -> None:
        for place in ("dev", "proc", "sys", "run", "tmp", "var/tmp", "root"):
            (stage / place).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if (Path("/") / name).is_symlink():
                os.symlink(os.readlink(Path("/") / name), stage / name)
        for name, fields in packages.items():
            for file in _files(name, fields.get("Architecture", "")):
                _copy(file, stage)
                if file.suffix == ".py":  # whose byte code was made when the package was installed
                    _copy(Path(cache_from_source(file)), stage)
        for link in _alternatives():
            _copy(link, stage)
        _copy_tree(Path("/etc"), stage, lambda path: False)

    return _image("base", key, fill)


def environment() -> Path:
    """The image of this checkout's virtual environment and of the cache."""
    trees = [ROOT / ".venv"]
    if CACHE.exists():
        for entry in sorted(CACHE.iterdir()):
            if entry.is_dir() and not LEFT_OUT.search(entry.name):
                trees.append(entry)

    def left_out(path: Path) -> bool:
        return path.suffix in (".partial", ".debs")

    listing = "".join(
        f"{path} {found.st_size} {found.st_mtime_ns}\n"
        for tree in trees
        for path in _walk(tree, left_out)
        for found in [path.lstat()]
        if not path.is_dir()
    )

    def fill(stage: Path) -> None:
        for tree in trees:
            _copy_tree(tree, stage, left_out)

    return _image("environment", listing, fill)


def job(folder: Path, out: Path | None, image: Path) -> None:
    """The image of the checkout as it is now, of the working directory, and of the job's own files in `folder`."""
    stage = folder / "stage"
    here = Path.cwd()
    trees = [ROOT]
    if not here.is_relative_to(ROOT) and not ROOT.is_relative_to(here):
        trees.append(here)
    for tree in trees:
        _copy_tree(tree, stage, lambda path: path.name in (".git", ".cache", ".venv", ".mypy_cache", ".ruff_cache"))
    if out is not None:
        (stage / out.relative_to("/")).mkdir(parents=True, exist_ok=True)
    own = stage / ".nested"
    own.mkdir()
    for name in ("job", "out"):
        if (folder / name).exists():
            shutil.copy(folder / name, own)
    shutil.copy(ROOT / "ci/l1-relay", own / "relay")
    make(stage, image)
    shutil.rmtree(stage)


def make(stage: Path | None, image: Path, room_bytes: int = 0, options: str = "^has_journal") -> None:
    """An ext4 image with what is in a folder, and with some room.  FetchError where it cannot be made."""
    size, count = room_bytes, 64
    if stage is not None:
        for path in _walk(stage, lambda path: False):
            found = path.lstat()
            size += -(-found.st_size // 4096) * 4096 + 256
            count += 1
    blocks = -(-int(size * 1.06 + 4 * MIB) // MIB)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-N", str(count + count // 8)]
    command += ["-O", f"{options},^resize_inode,^metadata_csum", "-E", "root_owner=0:0,lazy_itable_init=0"]
    if stage is not None:
        command += ["-d", str(stage)]
    done = subprocess.run([*command, str(image), f"{blocks}M"], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(f"cannot make the file system image {image.name} of {blocks} MiB: {why}")


def unpack(image: Path, target: Path) -> None:
    """Everything in an ext4 image into a folder."""
    subprocess.run(["e2fsck", "-fy", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    subprocess.run(
        ["debugfs", "-R", f"rdump / {target}", image], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    shutil.rmtree(target / "lost+found", ignore_errors=True)


def _image(name: str, content: str, fill: Callable[[Path], None]) -> Path:
    """The image called `name` of such a content, filled the first time; one of another content goes."""
    folder = CACHE / "images"
    key = hashlib.sha256(content.encode() + Path(__file__).read_bytes()).hexdigest()[:16]
    image = folder / f"{name}-{key}.ext4"
    try:
        with locked(CACHE / "locks" / f"images-{name}"):
            if image.exists():
                os.utime(image)
                return image
            folder.mkdir(exist_ok=True)
            for old in sorted(folder.glob(f"{name}-*.ext4"), key=lambda path: path.stat().st_mtime)[:-1]:
                old.unlink()  # a machine that has it open keeps it
            stage = folder / f"{name}.stage"
            draft = folder / f"{name}.draft"
            shutil.rmtree(stage, ignore_errors=True)
            try:
                stage.mkdir()
                fill(stage)
                make(stage, draft)
                draft.rename(image)
            finally:
                shutil.rmtree(stage, ignore_errors=True)
                draft.unlink(missing_ok=True)
    except OSError as error:
        raise FetchError(f"cannot fill the cache at {folder}: {error.strerror}") from None
    return image


def _walk(top: Path, left_out: Callable[[Path], bool]) -> Iterator[Path]:
    """Everything below `top`, folders before what is in them."""
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except PermissionError:
        return
    for entry in entries:
        path = Path(entry.path)
        if not left_out(path):
            yield path
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(path, left_out)


def _copy_tree(top: Path, stage: Path, left_out: Callable[[Path], bool]) -> None:
    for path in _walk(top, left_out):
        _copy(path, stage)


def _copy(path: Path, stage: Path) -> None:
    """One file, link or folder to its place below `stage`; what cannot be read, or is nothing of these, is left out."""
    folder = Path(os.path.realpath(path.parent))  # /bin is a link to /usr/bin
    target = stage / folder.relative_to("/") / path.name
    if os.path.lexists(target):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.is_symlink():
            os.symlink(os.readlink(path), target)
        elif path.is_dir():
            target.mkdir()
        elif path.is_file():
            try:
                os.link(path, target)
            except OSError:  # another file system
                shutil.copy2(path, target)
    except (PermissionError, FileNotFoundError):
        pass


def _closure(wanted: Iterable[str]) -> dict[str, dict[str, str]]:
    """Installed packages that every Debian has or that are wanted, and all that they depend on: dpkg's fields by name."""
    installed: dict[str, dict[str, str]] = {}
    providers: dict[str, str] = {}
    for paragraph in (_DPKG / "status").read_text(encoding="utf-8").split("\n\n"):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", paragraph, re.MULTILINE))
        if fields.get("Status", "").endswith(" installed"):
            installed[fields["Package"]] = fields
            for name in re.findall(r"[a-z0-9.+-]+", fields.get("Provides", "")):
                providers.setdefault(name, fields["Package"])
    left = [name for name, fields in installed.items() if fields.get("Priority") == "required"] + list(wanted)
    found: dict[str, dict[str, str]] = {}
    while left:
        name = left.pop()
        name = name if name in installed else providers.get(name, "")
        if name and name not in found:
            fields = found[name] = installed[name]
            depends = f"{fields.get('Depends', '')},{fields.get('Pre-Depends', '')}"
            for choices in depends.split(","):
                names = [re.sub(r"[ (:].*", "", choice.strip()) for choice in choices.split("|")]
                left += [one for one in names if one in installed or one in providers][:1]
    return found


def _files(package: str, architecture: str) -> Iterator[Path]:
    for name in (package, f"{package}:{architecture}"):
        listed = _DPKG / "info" / f"{name}.list"
        if listed.exists():
            for line in listed.read_text(encoding="utf-8").splitlines():
                if not line.startswith(("/usr/share/doc/", "/usr/share/man/", "/usr/share/locale/", "/.")):
                    yield Path(line)
            return


def _alternatives() -> Iterator[Path]:
    """The links into /etc/alternatives."""
    for state in (_DPKG / "alternatives").iterdir():
        for line in state.read_text(encoding="utf-8").splitlines():
            if line.startswith("/") and Path(line).is_symlink():
                yield Path(line)
