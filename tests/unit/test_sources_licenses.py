"""What licence files say of the documents beside and below them: the same in a folder, a commit and an archive."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, open_source, read
from tests.unit.archive_doubles import pack
from tests.unit.git_doubles import commit, git
from tests.unit.trees import MIT_TEXT, write

MIT = MIT_TEXT.encode()
ISC = b"""ISC License

Copyright (c) 2026 Somebody

Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies.

THE SOFTWARE IS PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT,
INDIRECT, OR CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN
AN ACTION OF CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR
PERFORMANCE OF THIS SOFTWARE.
"""
OTHER = b"All rights reserved.\n"
X = b"x = 1\n"
KINDS = ["directory", "git", "git at a URL", "tar", "zip"]


def packed(kind: str, folder: Path, files: Mapping[str, bytes]) -> dict[str, Any]:
    """The settings of a source that holds these files as one repository."""
    if kind == "directory":
        write(folder / "r", dict(files))
        return {"kind": "directory", "path": str(folder / "r"), "repository": "r"}
    if kind.startswith("git"):
        commit(folder / "r", {name.encode(): data for name, data in files.items()})
        return {"kind": "git", "url": f"file://{folder}/r" if "URL" in kind else str(folder / "r")}
    suffix = ".zip" if kind == "zip" else ".tar.gz"
    return {"kind": "archive", "path": str(pack(folder / f"r{suffix}", files))}


def licenses(**values: Any) -> dict[str, str | None]:
    """Of the documents by path."""
    source = open_source(validate(CollectSettings, {"sources": [values]}, "run.yaml").sources[0])
    result = read(source.entries(), 1_000_000)
    assert not result.rejected
    return {document.path: document.license for document in result.documents}


@pytest.fixture(params=KINDS)
def pack_as(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return lambda files: packed(request.param, tmp_path, files)


def test_a_file_has_the_licence_of_the_nearest_licence_file(pack_as: Callable[..., Any]) -> None:
    files = {
        "LICENSE": MIT,
        "a.py": X,
        "b/deep/er.py": X,
        "c/COPYING.txt": ISC,
        "c/c.py": X,
        "c/deep/er.py": X,
        "d/deep/LICENCE.md": ISC,
        "d/d.py": X,
    }
    assert licenses(**pack_as(files)) == {
        "a.py": "MIT",
        "b/deep/er.py": "MIT",
        "c/c.py": "ISC",
        "c/deep/er.py": "ISC",
        "d/d.py": "MIT",
    }


def test_a_licence_that_the_source_names_or_a_file_declares_wins(pack_as: Callable[..., Any]) -> None:
    source = pack_as({"LICENSE": MIT, "a.py": X, "b.py": b"# SPDX-License-Identifier: ISC\n" + X})
    assert licenses(**source) == {"a.py": "MIT", "b.py": "ISC"}
    assert licenses(**source, license="Apache-2.0") == {"a.py": "Apache-2.0", "b.py": "ISC"}


def test_licence_files_that_differ_or_are_not_recognised_leave_it_unknown(pack_as: Callable[..., Any]) -> None:
    files = {
        "LICENSE": MIT,
        "two/LICENSE-MIT": MIT,
        "two/LICENSE-ISC": ISC,
        "two/deep/a.py": X,
        "other/LICENSE": OTHER,
        "other/a.py": X,
        "both/LICENSE": MIT,
        "both/LICENSE.other": OTHER,
        "both/a.py": X,
        "same/LICENSE": ISC,
        "same/LICENSE.txt": ISC.replace(b"Somebody", b"Somebody Else"),
        "same/a.py": X,
        "huge/LICENSE": MIT * 100,
        "huge/a.py": X,
        "empty/LICENSE": b"",
        "empty/a.py": X,
    }
    found = licenses(**pack_as(files))
    assert {path.split("/")[0]: found[path] for path in found} == {
        "two": None,
        "other": None,
        "both": None,
        "same": "ISC",
        "huge": None,
        "empty": None,
    }


def test_a_licence_file_is_a_document_only_if_it_is_wanted(pack_as: Callable[..., Any]) -> None:
    source = pack_as({"LICENSE": MIT, "a.py": X})
    assert set(licenses(**source)) == {"a.py"}
    assert licenses(**source, include=["*"]) == {"LICENSE": "MIT", "a.py": "MIT"}
    assert licenses(**source, exclude=["LICENSE"]) == {"a.py": "MIT"}


def test_a_licence_in_another_encoding_is_recognised(pack_as: Callable[..., Any]) -> None:
    latin = MIT.replace(b"(c) 2026 Somebody", b"\xa9 2026 Andr\xe9")
    marked = b"\xef\xbb\xbf" + MIT.replace(b"\n", b"\r\n")
    source = pack_as({"a/LICENSE": latin, "a/a.py": X, "b/LICENSE": marked, "b/b.py": X})
    assert licenses(**source) == {"a/a.py": "MIT", "b/b.py": "MIT"}


NAMES = st.sampled_from(["LICENSE", "LICENSE-2", "COPYING", "a.py", "license.py"])
FOLDERS = st.lists(st.sampled_from(["a", "b"]), max_size=3).map(lambda parts: "".join(f"{part}/" for part in parts))
TREES = st.dictionaries(st.builds(str.__add__, FOLDERS, NAMES), st.sampled_from([MIT, ISC, OTHER]), max_size=8)


def expected(path: str, files: Mapping[str, bytes]) -> str | None:
    """The licence of a file, by looking into every folder above it."""
    folder = path
    while folder:
        folder = folder.rpartition("/")[0]
        beside = {name: data for name, data in files.items() if name.rpartition("/")[0] == folder}
        texts = {data for name, data in beside.items() if not name.endswith(".py")}
        if texts:
            return {MIT: "MIT", ISC: "ISC"}.get(texts.pop()) if len(texts) == 1 else None
    return None


@settings(max_examples=20)
@pytest.mark.parametrize("kind", ["directory", "git", "tar", "zip"])
@given(tree=TREES)
def test_whatever_the_tree_the_nearest_licence_counts(kind: str, tree: dict[str, bytes]) -> None:
    files = {name: X if name.endswith(".py") else data for name, data in tree.items()} | {"x.py": X}
    with tempfile.TemporaryDirectory() as name:
        found = licenses(**packed(kind, Path(name), files))
    assert found == {path: expected(path, files) for path in files if path.endswith(".py")}


def test_a_repository_of_a_folder_has_licence_files_of_its_own(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write(corpus, {"LICENSE": MIT, "top.py": X, "one/LICENSE": ISC, "one/a/x.py": X, "two/x.py": X})
    found = licenses(kind="directory", path=str(corpus))
    assert found == {"top.py": "MIT", "one/a/x.py": "ISC", "two/x.py": None}
    found = licenses(kind="directory", path=str(corpus), repository="all")
    assert found == {"top.py": "MIT", "one/a/x.py": "ISC", "two/x.py": "MIT"}


def test_licence_files_of_others_and_links_say_nothing(tmp_path: Path) -> None:
    write(tmp_path / "r", {"LICENSE": MIT, "a/x.py": X, "a/node_modules/LICENSE": ISC})
    (tmp_path / "r/a/LICENSE").symlink_to("node_modules/LICENSE")
    assert licenses(kind="directory", path=str(tmp_path / "r"), repository="r") == {"a/x.py": "MIT"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_called_as_a_licence_does_not_hang(tmp_path: Path) -> None:
    write(tmp_path / "r", {"x.py": X})
    os.mkfifo(tmp_path / "r/LICENSE")
    assert licenses(kind="directory", path=str(tmp_path / "r")) == {"x.py": None}


def test_a_licence_that_has_not_changed_counts_for_a_file_that_has(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"LICENSE": MIT, b"a.py": X})
    git(tmp_path / "r", "tag", "v1")
    commit(tmp_path / "r", {b"LICENSE": MIT, b"a.py": X, b"b.py": X})
    assert licenses(kind="git", url=str(tmp_path / "r"), since="v1") == {"b.py": "MIT"}


def test_the_folder_that_an_archive_packs_everything_into_is_the_repository(tmp_path: Path) -> None:
    path = pack(tmp_path / "p.tar.gz", {"p-1.0/LICENSE": MIT, "p-1.0/src/a.py": X})
    assert licenses(kind="archive", path=str(path)) == {"src/a.py": "MIT"}


def test_only_licence_files_that_are_needed_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_texts: list[str] = []
    monkeypatch.setattr("codeparrot.sources.license_files.license_of_text", read_texts.append)
    write(tmp_path / "r", {"LICENSE": MIT, "a/LICENSE": ISC, "a/x.py": X, "b/LICENSE": OTHER, "b/b.txt": X})
    licenses(kind="directory", path=str(tmp_path / "r"), repository="r")
    assert read_texts == [ISC.decode()]
