"""Any tree of files, for the tests of sources: what it becomes must not depend on what it is packed in."""

from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from codeparrot.documents import ReadReason
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, open_source, read

LIMIT = 200

PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=20).filter(
    lambda part: part not in (".", "..") and part.lower() != ".git"
)
DATA = st.binary(max_size=LIMIT + 20) | st.text(max_size=30).map(str.encode)


def _flat(tree: dict[str, Any]) -> dict[str, bytes]:
    inner = {
        f"{top}/{name}": data for top, below in tree.items() if isinstance(below, dict) for name, data in below.items()
    }
    return {"always.py": b"x = 1\n"} | {top: data for top, data in tree.items() if isinstance(data, bytes)} | inner


TREES = st.dictionaries(PARTS, st.dictionaries(PARTS, DATA, max_size=3) | DATA).map(_flat)
"""Path to content. A file at the top is always there."""

MIT_TEXT = """MIT License

Copyright (c) 2026 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def write(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def outcome(kind: str, **settings: Any) -> tuple[dict[str, str], dict[str, ReadReason]]:
    """The hash of the content of each document by path, and why the others are none."""
    values = {"kind": kind, "include": ["*"], "exclude_folders": [], "repository": "r", **settings}
    source = open_source(validate(CollectSettings, {"sources": [values]}, "run.yaml").sources[0])
    result = read(source.entries(), LIMIT)
    return (
        {document.path: document.sha256 for document in result.documents},
        {entry.path: reason for entry, reason in result.rejected},
    )
