"""What a node keeps of places elsewhere, in its cache: clones, archives, answers. It is whole, or not there.

Archives of one kind take at most CODEPARROT_CACHE_BYTES (50 GB unless it is set): those that were not used for longest
make room for a new one, and are fetched again when they are needed. That is a matter of the machine and stands in no
recipe, since what is collected does not depend on it. Clones of git have no limit.
"""

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codeparrot.storage import alone, default_cache, make_private

CLONES = "git"
TARBALLS = "github"
SDISTS = "sdist"
KINDS = (CLONES, TARBALLS, SDISTS)
"""Folders of a cache."""
LIMIT = "CODEPARROT_CACHE_BYTES"
DEFAULT_LIMIT_BYTES = 50_000_000_000
BESIDE = (".lock", ".tmp", ".json")
"""Ends of names of what is no archive: small, or not whole yet."""


class CannotKeep(Exception):
    """The cache cannot be written; the message says why, and the way out."""


def kept(kind: str, name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder of this name; `make` makes it at the path that it gets, unless it is there already.

    Of many processes of a node one makes it. A file may be gone a moment later, if others needed its room.
    Raises CannotKeep, and what `make` raises.
    """
    with _private(kind) as folder, alone(folder / f"{name}.lock"):
        path, unfinished = folder / name, folder / f"{name}.tmp"
        if not path.exists():
            _remove(unfinished)  # what another process was interrupted in
            try:
                make(unfinished)
            except BaseException:
                _remove(unfinished)
                raise
            unfinished.rename(path)
            _make_room(folder, path)
        os.utime(path)
    return path


def _make_room(folder: Path, new: Path) -> None:
    """Remove the files that were not used for longest until all fit, or only the new one is left."""
    limit, found = limit_bytes(), []
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process makes room too
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and path.suffix not in BESIDE:
                found.append((status.st_mtime_ns, status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total > limit and path != new:
            path.unlink(missing_ok=True)
            total -= size


def limit_bytes() -> int:
    """How much the archives of one kind may take. Raises CannotKeep."""
    text = os.environ.get(LIMIT) or str(DEFAULT_LIMIT_BYTES)
    if not text.isdecimal():
        raise CannotKeep(f"CODEPARROT_CACHE_BYTES is a number of bytes such as 50000000000, not {text!r}")
    return int(text)


def remember(kind: str, name: str, data: bytes) -> None:
    """Keep a small file, in the place of an older one. Raises CannotKeep."""
    with _private(kind) as folder, alone(folder / f"{name}.lock"):
        unfinished = folder / f"{name}.tmp"
        unfinished.write_bytes(data)
        unfinished.rename(folder / name)


def remembered(kind: str, name: str) -> bytes | None:
    """A small file that was kept, if there is one. Raises CannotKeep."""
    with _private(kind) as folder:
        path = folder / name
        return path.read_bytes() if path.exists() else None


def sync(path: Path) -> None:
    """See to it that a file that is renamed next is whole even if the machine loses power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _private(kind: str) -> Iterator[Path]:
    folder = default_cache() / kind
    try:
        make_private(folder.parent)
        make_private(folder)
        yield folder
    except OSError as error:
        reason = error.strerror or error
        raise CannotKeep(
            f"cannot keep what it fetches in {folder}: {reason}; set CODEPARROT_CACHE to another folder"
        ) from error
