"""A document: one source file, and how bytes on disk, or a text in a table, become one.

Documents travel as Arrow tables of `SCHEMA`, in shards of Parquet. `content` is always valid UTF-8 with `\\n` line
ends and no byte-order mark; what cannot become that is rejected with a reason, never an exception.
"""

import codecs
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING

from codeparrot.storage import sha256_hex

if TYPE_CHECKING:
    import pyarrow as pa

LANGUAGES = {".py": "Python", ".pyi": "Python", ".pyx": "Cython"}
PARQUET_COMPRESSION = "zstd"
DISTINCT = frozenset({"content", "sha256"})
"""Columns whose values hardly ever repeat: a dictionary of them, or their least and greatest, is of no use."""


class ReadReason(StrEnum):
    """Why a file did not become a document."""

    UNREADABLE = "unreadable"
    NO_TEXT = "no_text"
    NOT_REGULAR = "not_regular"
    TOO_LARGE = "too_large"
    EMPTY = "empty"
    BINARY = "binary"
    BAD_ENCODING = "bad_encoding"


@dataclass(frozen=True)
class Document:
    """One source file."""

    repository: str
    path: str
    revision: str | None
    license: str | None
    """An SPDX expression, or None if unknown."""
    language: str | None
    content: str
    size_bytes: int
    """Of `content` in UTF-8."""
    sha256: str
    """Of `content` in UTF-8."""
    source: str
    stars: int | None = None
    """Of its repository, when it was collected; None if its source does not know."""
    updated: datetime | None = None
    """When its repository was last changed: the date of the commit, or of the last push."""

    @property
    def id(self) -> str:
        """What keys every random choice about this document."""
        return document_id(self.source, self.repository, self.path)


def document_id(source: str, repository: str, path: str) -> str:
    """A document's identity: independent of where and when it is read."""
    return f"{source}\0{repository}\0{path}"


def origin_of(document_id: str) -> dict[str, str]:
    """The source, repository and path that an id was made of."""
    return dict(zip(("source", "repository", "path"), document_id.split("\0"), strict=True))


def size_classes() -> Iterator[int]:
    """100, 200, 500, 1000, ...: documents are counted by the least of these that their bytes do not exceed."""
    for power in count(2):
        yield from (digit * 10**power for digit in (1, 2, 5))


def language_of(path: str) -> str | None:
    """The language by file name, or None."""
    return LANGUAGES.get(path[path.rfind(".") :].lower()) if "." in path else None


def decode(data: bytes) -> str | ReadReason:
    """Source bytes as text: the encoding by byte-order mark or PEP 263 cookie, else UTF-8; line ends as `\\n`."""
    if not data.strip():
        return ReadReason.EMPTY
    try:
        text = data.decode(_encoding(data))
    except (SyntaxError, UnicodeError, LookupError):
        return ReadReason.BINARY if b"\0" in data else ReadReason.BAD_ENCODING
    return clean(text)


def _encoding(data: bytes) -> str:
    """What its first two lines say. Raises SyntaxError."""
    head = data.split(b"\n", 2)[:2]
    if not data.startswith(codecs.BOM_UTF8) and not any(b"coding" in line for line in head):
        return "utf-8"  # nothing says otherwise, as of nearly all files
    return tokenize.detect_encoding(io.BytesIO(data).readline)[0]


def clean(text: str) -> str | ReadReason:
    """Text as documents hold it, or why they cannot. What it says of its encoding was true of other bytes."""
    if "\0" in text:
        return ReadReason.BINARY
    text = text.removeprefix("\ufeff")
    if "\r" in text:
        text = re.sub("\r\n?", "\n", text)
    try:
        text.encode()
    except UnicodeEncodeError:  # lone surrogates, from encodings such as utf-7, or escaped in JSON
        return ReadReason.BAD_ENCODING
    return text if text.strip() else ReadReason.EMPTY


def make_document(
    data: bytes | str, *, source: str, repository: str, path: str, revision: str | None, license: str | None
) -> Document | ReadReason:
    """A document from the bytes of a file, or from its text, or the reason why it cannot be one."""
    content = clean(data) if isinstance(data, str) else decode(data)
    if isinstance(content, ReadReason):
        return content
    encoded = content.encode()
    return Document(
        repository=repository,
        path=path,
        revision=revision,
        license=license,
        language=language_of(path),
        content=content,
        size_bytes=len(encoded),
        sha256=sha256_hex(encoded),
        source=source,
    )


def schema() -> "pa.Schema":
    """The Arrow schema of a shard of documents."""
    import pyarrow as pa

    optional = ("revision", "license", "language")
    text = ("repository", "path", "revision", "license", "language", "content")
    fields = [pa.field(name, pa.string(), nullable=name in optional) for name in text]
    fields.append(pa.field("size_bytes", pa.int64(), nullable=False))
    fields += [pa.field(name, pa.string(), nullable=False) for name in ("sha256", "source")]
    fields += [pa.field("stars", pa.int64()), pa.field("updated", pa.timestamp("ms", "UTC"))]
    return pa.schema(fields)


def to_table(documents: Sequence[Document]) -> "pa.Table":
    """Documents as an Arrow table."""
    import pyarrow as pa

    columns = {name: [getattr(document, name) for document in documents] for name in schema().names}
    return pa.Table.from_pydict(columns, schema=schema())


def to_parquet(table: "pa.Table") -> bytes:
    """A table as the bytes of a Parquet file; equal tables give equal bytes."""
    import pyarrow.parquet as pq

    sink, repeated = io.BytesIO(), [name for name in table.column_names if name not in DISTINCT]
    pq.write_table(table, sink, compression=PARQUET_COMPRESSION, use_dictionary=repeated, write_statistics=repeated)
    return sink.getvalue()


def from_parquet(data: bytes, columns: Iterable[str] | None = None) -> "pa.Table":
    """The table in the bytes of a Parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    return pq.read_table(pa.BufferReader(data), columns=list(columns) if columns is not None else None)
