"""Real archives of every kind, for the tests of sources."""

import io
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from codeparrot.errors import SourceError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, open_source, read
from codeparrot.sources.archive_files import FORMATS

LIMIT = 1_000_000
X = b"x = 1\n"
SUFFIXES = sorted(FORMATS)
MODES = {".tar": "w:", ".tar.gz": "w:gz", ".tgz": "w:gz", ".tar.bz2": "w:bz2", ".tar.xz": "w:xz"}


def entries_of(path: Path, **settings: Any) -> Sequence[Entry]:
    values = {"sources": [{"kind": "archive", "path": str(path), **settings}]}
    return open_source(validate(CollectSettings, values, "run.yaml").sources[0]).entries()


def pack(path: Path, files: Mapping[str, bytes] | Sequence[tuple[str, bytes]]) -> Path:
    """An archive of the kind that the name of `path` says."""
    pairs = files.items() if isinstance(files, Mapping) else files
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in pairs:
                archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
        return path
    with tarfile.open(path, MODES[next(suffix for suffix in MODES if path.name.endswith(suffix))]) as tar:  # type: ignore[call-overload]
        for name, data in pairs:
            add(tar, name, data)
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **about: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in about.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def contents(path: Path, **settings: Any) -> dict[str, str]:
    result = read(entries_of(path, **settings), LIMIT)
    assert not result.rejected
    return {document.path: document.content for document in result.documents}


def failure(path: Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        entries_of(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"source 'archive': archive {path} ")
    assert "\n" not in message
    return message


def flagged(path: Path, old: bytes, new: bytes) -> None:
    """Change every header of a zip file in place."""
    data = path.read_bytes()
    assert len(old) == len(new)
    assert old in data
    path.write_bytes(data.replace(old, new))
