"""Rows of Parquet files: of columns that are not asked for nothing is read, of contents one row group at a time."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import RawIOBase
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from codeparrot.documents import ReadReason
from codeparrot.sources.rows import Columns, DamagedFile, Row, WrongColumns, one_line, wrong_columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DAMAGE = (OSError, ValueError, NotImplementedError, KeyError, OverflowError, MemoryError)
"""What pyarrow raises where a file is damaged; its ArrowInvalid is a ValueError."""
ROWS_AT_ONCE = 10_000
CONTENTS_AT_ONCE = 128
BUFFER_BYTES = 1 << 23
"""Of a column that is read; else all of it in a row group would be asked for at once."""


class ParquetFormat:
    """Parquet. The location of a row is its number; its block is its row group."""

    def rows(self, file: RawIOBase, columns: Columns) -> Iterator[Row]:
        """All rows. Of content nothing is read if there is a column of its size."""
        with _opened(file, pre_buffer=True) as parquet:  # fetches what lies side by side at once
            described = columns.described()
            _check_columns(parquet.schema_arrow, columns)
            has_size = columns.size in parquet.schema_arrow.names
            measured = columns.size if columns.size and has_size else columns.content
            at_once = ROWS_AT_ONCE if has_size else CONTENTS_AT_ONCE
            number = 0
            for block in range(parquet.num_row_groups):
                names = [*dict.fromkeys([*described.values(), measured])]
                for batch in parquet.iter_batches(at_once, row_groups=[block], columns=names):
                    sizes = (_sizes if has_size else _lengths)(batch.column(measured))
                    values = [_values(batch.column(name)) for name in described.values()]
                    for size_bytes, *about in zip(sizes, *values, strict=True):
                        yield Row(b"%d" % number, block, dict(zip(described, about, strict=True)), size_bytes)
                        number += 1

    def contents(
        self, file: RawIOBase, column: str, locations: Collection[bytes], max_bytes: int
    ) -> Iterator[tuple[bytes, bytes | str | ReadReason]]:
        """Contents, from the row groups that hold these rows; of one that is damaged only what lies before that."""
        with _opened(file, pre_buffer=False, buffer_size=BUFFER_BYTES) as parquet:
            if column not in parquet.schema_arrow.names:
                return
            groups = [parquet.metadata.row_group(block).num_rows for block in range(parquet.num_row_groups)]
            wanted = sorted(map(int, locations))
            for block, (num_rows, end) in enumerate(zip(groups, accumulate(groups), strict=True)):
                here = [number - end + num_rows for number in wanted if end - num_rows <= number < end]
                try:
                    for row, content in _contents(parquet, block, column, here, max_bytes):
                        yield b"%d" % (end - num_rows + row), content
                except DAMAGE:
                    continue


def _contents(
    parquet: "pq.ParquetFile", block: int, column: str, rows: list[int], max_bytes: int
) -> Iterator[tuple[int, bytes | str | ReadReason]]:
    """The contents of these rows of a row group, which are in order."""
    import pyarrow as pa

    waiting = iter(rows)
    row = next(waiting, None)
    if row is None:
        return
    start = 0
    is_text = not _is_binary(parquet.schema_arrow.field(column).type)
    for batch in parquet.iter_batches(CONTENTS_AT_ONCE, row_groups=[block], columns=[column], use_threads=False):
        data = batch.column(0).cast(pa.large_binary())
        while row is not None and row < start + len(data):
            yield row, _content(data[row - start].as_py(), is_text, max_bytes)
            row = next(waiting, None)
        if row is None:
            return
        start += len(data)


def _content(data: bytes | None, is_text: bool, max_bytes: int) -> bytes | str | ReadReason:
    if data is None:
        return ReadReason.NO_TEXT
    if len(data) > max_bytes:
        return ReadReason.TOO_LARGE
    if not is_text:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ReadReason.BAD_ENCODING


def _check_columns(schema: "pa.Schema", columns: Columns) -> None:
    """Raise WrongColumns unless the columns are there, once each, and may hold what they should."""
    needed = columns.required() | columns.described()
    missing = {column for column in needed.values() if schema.names.count(column) != 1}
    if missing:
        raise wrong_columns(missing, schema.names)
    for name, column in needed.items():
        kind = schema.field(column).type
        if not _is_text(kind) and not (name == "license" and _is_list(kind) and _is_text(kind.value_type)):
            raise WrongColumns(f"has no text in column {column}, but {kind}")


def _is_binary(kind: "pa.DataType") -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in tests)


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    return _is_binary(kind) or any(test(kind) for test in tests)


def _is_list(kind: "pa.DataType") -> bool:
    from pyarrow import types

    return any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list))


def _values(array: "pa.Array") -> list[Any]:
    """Plain values; text as bytes, since nobody checks that it is UTF-8."""
    import pyarrow as pa

    inner = pa.large_list(pa.large_binary()) if _is_list(array.type) else pa.large_binary()
    return list(array.cast(inner).to_pylist())


def _sizes(array: "pa.Array") -> list[int]:
    return [_integer(value) for value in (_values(array) if _is_text(array.type) else array.to_pylist())]


def _integer(value: object) -> int:
    """Sizes stand as numbers in some data sets, as text in others; what is none takes no room in a choice."""
    try:
        return max(0, int(value))  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError):
        return 0


def _lengths(array: "pa.Array") -> list[int]:
    import pyarrow as pa
    import pyarrow.compute as pc

    return [length or 0 for length in pc.binary_length(array.cast(pa.large_binary())).to_pylist()]


@contextmanager
def _opened(file: RawIOBase, **options: Any) -> "Iterator[pq.ParquetFile]":
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file, **options) as parquet:
            yield parquet
    except DAMAGE as error:
        raise DamagedFile(one_line(error)) from error


PARQUET = ParquetFormat()
