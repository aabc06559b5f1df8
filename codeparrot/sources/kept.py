"""What a node keeps of places elsewhere, in its cache: clones, archives, answers. It is whole, or not there."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from codeparrot.storage import alone, default_cache, make_private

CLONES = "git"
TARBALLS = "github"
SDISTS = "sdist"
KINDS = (CLONES, TARBALLS, SDISTS)
"""Folders of a cache."""


class CannotKeep(Exception):
    """The cache cannot be written; the message says why, and the way out."""


def kept(kind: str, name: str, make: Callable[[Path], object]) -> Path:
    """The file or folder of this name; `make` makes it at the path that it gets, unless it is there already.

    Of many processes of a node one makes it. Raises CannotKeep, and what `make` raises.
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
    return path


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
