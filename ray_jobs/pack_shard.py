"""One shard in the two passes of packing: documents to tokens, and pieces of documents to rows.

What the tasks of `ray_jobs.pack` run, and what they tell the driver.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from codeparrot.documents import from_parquet, to_parquet
from codeparrot.draws import key
from codeparrot.infilling import Infilling, tell
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.packing import copy_pieces, document_starts, encode_documents, row_lengths, to_npy
from codeparrot.provenance import ORIGIN, first_lines, held, index_table, parts
from codeparrot.splits import SPLITS
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import kept_encoder, text_column

if TYPE_CHECKING:
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]
FIRST_LINE = "first_line"
"""Beside the origins of sections: the line of its document that each begins in."""


@dataclass(frozen=True)
class Encoded:
    """One curated shard as tokens, stored under `path`; its documents' origins lie beside."""

    path: str
    lengths: npt.NDArray[np.int32]
    """Tokens of each document, its end-of-text token included: shape (documents,). Sections that were rearranged
    (`codeparrot.infilling`) stand for documents here."""
    size_bytes: int
    num_forgotten: int
    """Documents of repositories that are to be forgotten, left out."""
    num_documents: int
    num_rearranged: int = 0
    """Documents, told in another order."""
    num_marks: int = 0
    """Special tokens that this has added."""


def encode_shard(
    name: str,
    *,
    uri: str,
    folder: str,
    curated: Manifest,
    tokenizer_json: str,
    forgotten: Collection[str],
    infilling: Infilling | None = None,
) -> Encoded:
    """The first pass: the documents of a curated shard, encoded, and those to learn from rearranged if asked for."""
    import pyarrow as pa
    import pyarrow.compute as pc

    storage = open_storage(uri)
    infilling = infilling if name.startswith(f"{SPLITS[0]}/") else None
    columns = [*ORIGIN, "content", "size_bytes", *(["sha256"] if infilling else [])]
    table = kept = from_parquet(curated.read(storage, name), columns)
    if forgotten:
        kept = table.filter(pc.invert(pc.is_in(table["repository"], pa.array(sorted(forgotten), pa.string()))))
    texts = text_column(kept["content"])
    encoder = kept_encoder(tokenizer_json).checked(texts, key(0, "encode", name))
    origins = kept.select(ORIGIN)
    changed = (0, 0)
    if infilling is None:
        tokens, lengths = encode_documents(texts, encoder)
    else:
        told = tell(texts, kept["sha256"].to_pylist(), encoder, infilling)
        tokens, lengths, changed = told.tokens, told.lengths, (told.num_rearranged, told.num_marks)
        origins = origins.take(pa.array(told.document)).append_column(FIRST_LINE, pa.array(told.line))
    path = f"{folder}/{name}.tokens"
    storage.write(path, tokens.tobytes())
    storage.write(origins_path(path), to_parquet(origins))
    size_bytes = pc.sum(kept["size_bytes"]).as_py() or 0
    forgot = table.num_rows - kept.num_rows
    return Encoded(path, lengths.astype(np.int32), size_bytes, forgot, kept.num_rows, *changed)


def origins_path(path: str) -> str:
    """Where the origins of encoded documents lie."""
    return f"{path}.origins.parquet"


@dataclass(frozen=True)
class Pieces:
    """Pieces of documents and where they go, by row and offset: arrays of shape (pieces,)."""

    shard: Int64
    """The encoded shard."""
    document: Int64
    """In that shard."""
    begin: Int64
    """Where the document begins among the shard's tokens."""
    start: Int64
    """Where the piece begins in the document."""
    length: Int64
    row: Int64
    offset: Int64


@dataclass(frozen=True)
class Target:
    """What one task of the second pass writes."""

    split: str
    index: int | None
    """Of the packed shard; None: the remainder."""
    first_row: int
    num_tokens: int
    """The rows' size, or the remainder's."""
    pieces: Pieces


@dataclass(frozen=True)
class Written:
    """What it has written."""

    split: str
    files: list[File]
    num_rows: int
    num_tokens: int
    """Of documents."""
    num_bytes: int
    """Of text, counted only where documents were rearranged; else 0."""
    held: "pa.Table"
    """Which repositories are in which rows."""


@dataclass(frozen=True)
class Rows:
    """What all rows have in common."""

    paths: Mapping[str, Sequence[str]]
    """Of the encoded shards, by split."""
    max_seq_len: int
    dtype: str
    eos_token_id: int
    padded: bool
    """Whether rows end in padding."""
    newlines: npt.NDArray[np.uint16]
    """In each token of the vocabulary: shape (vocab_size,)."""
    sizes: Int64 | None = None
    """Bytes of text of each token, where they are to be counted: shape (vocab_size,)."""


def write_rows(target: Target, *, uri: str, folder: str, rows: Rows) -> Written:
    """The second pass: rows, where documents begin in them, and where they come from."""
    storage, pieces, max_seq_len = open_storage(uri), target.pieces, rows.max_seq_len
    row = pieces.row - target.first_row
    starts = document_starts(row, pieces.offset, pieces.length, max_seq_len)
    tokens = np.full(target.num_tokens, rows.eos_token_id, rows.dtype)
    lines = np.ones(len(row), np.int64)
    paths = rows.paths[target.split]
    for begin, some, source in _sources(storage, paths, rows.dtype, pieces):
        at = (row * max_seq_len + pieces.offset)[some]
        copy_pieces(source, begin + pieces.start[some], pieces.length[some], tokens, at)
        lines[some] = first_lines(source, rows.newlines, begin, pieces.start[some])
    origins = _origins(storage, paths, pieces)
    if FIRST_LINE in origins.column_names:
        lines += origins[FIRST_LINE].to_numpy() - 1
    index = index_table(origins, pieces.row, pieces.offset, pieces.length, pieces.start, lines)
    kind = "remainder" if target.index is None else f"{target.index:05d}"
    contents = {f"provenance-{kind}.parquet": to_parquet(index)}
    if target.index is None:
        contents["remainder.npy"] = to_npy(tokens)
    else:
        contents[f"rows-{kind}.npy"] = to_npy(tokens.reshape(-1, max_seq_len))
        contents[f"starts-{kind}.npy"] = to_npy(starts)
        if rows.padded:
            contents[f"lengths-{kind}.npy"] = to_npy(row_lengths(row, pieces.length, len(tokens) // max_seq_len))
    files = [write_file(storage, folder, f"{target.split}/{name}", data) for name, data in contents.items()]
    num_bytes = 0 if rows.sizes is None else int(rows.sizes[tokens].sum())
    return Written(target.split, files, len(tokens) // max_seq_len, int(pieces.length.sum()), num_bytes, held(index))


def _sources(
    storage: Storage, paths: Sequence[str], dtype: str, pieces: Pieces
) -> Iterator[tuple[Int64, Int64, npt.NDArray[Any]]]:
    """(where the documents begin in these tokens, of which pieces, tokens)."""
    size = np.dtype(dtype).itemsize
    for part in parts(pieces.shard, pieces.begin, pieces.start, pieces.length):
        data = storage.read(paths[part.shard], part.low * size, part.high * size)
        yield pieces.begin[part.pieces] - part.low, part.pieces, np.frombuffer(data, dtype)


def _origins(storage: Storage, paths: Sequence[str], pieces: Pieces) -> "pa.Table":
    """The origin of each piece."""
    import pyarrow as pa

    order = np.argsort(pieces.shard, kind="stable")
    shards, first = np.unique(pieces.shard[order], return_index=True)
    tables = [
        from_parquet(storage.read(origins_path(paths[shard]))).take(pa.array(pieces.document[some]))
        for shard, some in zip(shards.tolist(), np.split(order, first[1:]), strict=True)
    ]
    return pa.concat_tables(tables).take(pa.array(np.argsort(order)))
