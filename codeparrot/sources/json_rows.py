"""Rows of JSON lines, plain or compressed: one pass, never more of it in memory than a line may have."""

import io
import json
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from codeparrot.documents import ReadReason
from codeparrot.sources.rows import Columns, DamagedFile, Row, one_line, wrong_columns

MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bz2"}
"""How compressed files begin: their names do not always tell."""
DAMAGE = (OSError, ValueError)
"""What pyarrow raises where compressed data is damaged or cut off."""
BUFFER_BYTES = 1 << 22
"""Asked of a file at once, which may be far away."""
PIECE_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 25
BLOCK_BYTES = 1 << 26
"""Of the unpacked file; rows of one block are read together."""


class JsonLinesFormat:
    """JSON lines. The location of a row is the place, the length and the CRC-32 of its line in the unpacked file."""

    def rows(self, file: io.RawIOBase, columns: Columns) -> Iterator[Row]:
        """All rows. A line that is no JSON object is one that cannot be read; if all are, the file is damaged."""
        required = set(columns.required().values())
        described = columns.described()
        missing, first = set(required), None
        num_lines = 0
        with _opened(file) as lines:
            for start, line in _lines(lines):
                num_lines += 1
                row = line if isinstance(line, ReadReason) else _object(line)
                block = start // BLOCK_BYTES
                if isinstance(row, ReadReason):
                    yield Row(b"%d" % start, block, row)
                    continue
                assert isinstance(line, bytes), "it was parsed"
                missing.difference_update(row)
                first = first or row
                about = {name: row.get(column) for name, column in described.items()}
                location = b"%d %d %d" % (start, len(line), zlib.crc32(line))
                yield Row(location, block, about, _size(row.get(columns.content)))
        if num_lines and first is None:
            raise DamagedFile("none of its lines is a JSON object")
        if first is not None and missing:
            raise wrong_columns(missing, first)

    def contents(
        self, file: io.RawIOBase, column: str, locations: Collection[bytes], max_bytes: int
    ) -> Iterator[tuple[bytes, bytes | str | ReadReason]]:
        """Contents, read forwards up to the last of these rows."""
        places = sorted((_place(location), location) for location in locations)
        position = 0
        with _opened(file) as lines:
            for (start, length, crc32), location in places:
                _skip(lines, start - position)
                line = lines.read(length)
                position = start + len(line)
                is_same = zlib.crc32(line) == crc32
                yield location, _content(_object(line), column, max_bytes) if is_same else ReadReason.UNREADABLE


def _lines(file: io.BufferedReader) -> Iterator[tuple[int, bytes | ReadReason]]:
    """The place and the bytes of every line that is not blank; of one that is too long only that."""
    start = 0
    while line := file.readline(MAX_LINE_BYTES):
        length = len(line)
        is_long = length == MAX_LINE_BYTES and not line.endswith(b"\n")
        while is_long and (rest := file.readline(MAX_LINE_BYTES)):
            length += len(rest)
            if rest.endswith(b"\n"):
                break
        if is_long:
            yield start, ReadReason.TOO_LARGE
        elif line.strip():
            yield start, line
        start += length


def _place(location: bytes) -> tuple[int, int, int]:
    start, length, crc32 = map(int, location.split())
    return start, length, crc32


def _object(line: bytes) -> dict[str, Any] | ReadReason:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return ReadReason.UNREADABLE
    return value if isinstance(value, dict) else ReadReason.UNREADABLE


def _content(row: dict[str, Any] | ReadReason, column: str, max_bytes: int) -> str | ReadReason:
    if isinstance(row, ReadReason):
        return row
    text = row.get(column)
    if not isinstance(text, str):
        return ReadReason.NO_TEXT
    return ReadReason.TOO_LARGE if _size(text) > max_bytes else text


def _size(text: object) -> int:
    """Bytes in UTF-8."""
    return len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0


def _skip(file: io.BufferedReader, num_bytes: int) -> None:
    if file.seekable():
        file.seek(num_bytes, io.SEEK_CUR)
        return
    while num_bytes > 0:
        piece = file.read(min(num_bytes, PIECE_BYTES))
        num_bytes = num_bytes - len(piece) if piece else 0


@contextmanager
def _opened(file: io.RawIOBase) -> Iterator[io.BufferedReader]:
    """The file, unpacked."""
    import pyarrow as pa

    begin = file.read(4) or b""
    file.seek(0)
    codec = next((codec for magic, codec in MAGIC.items() if begin.startswith(magic)), None)
    try:
        if codec is None:
            yield io.BufferedReader(file, BUFFER_BYTES)
        else:
            packed = pa.BufferedInputStream(pa.PythonFile(file, mode="r"), BUFFER_BYTES)
            with pa.CompressedInputStream(packed, codec) as unpacked:
                yield io.BufferedReader(unpacked, PIECE_BYTES)
    except DAMAGE as error:
        raise DamagedFile(one_line(error)) from error


JSON_LINES = JsonLinesFormat()
