"""Duplicates: of documents that say the same, one stays.

Two documents are exact duplicates if they are equal but for blank lines and white space at the ends of lines.
Indentation counts, since in Python it is the program. Only documents that passed the filters take part, so a
rejected document never stands for its twins.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codeparrot.shingles import Hashes, Indices

if TYPE_CHECKING:
    import pyarrow as pa

WHITE_SPACE = " \t\f\v"
SPACES = np.frombuffer(WHITE_SPACE.encode(), np.uint8)
LINE_FEED = ord("\n")
KEY_BYTES = 16
PREFERENCE = ("license", "stars", "updated", "source", "repository", "path")
"""Columns of documents that decide which of duplicates stays."""


def content_key(content: str) -> bytes:
    """16 bytes that are equal for exact duplicates."""
    if content.endswith(tuple(WHITE_SPACE)) or any(f"{space}\n" in content for space in WHITE_SPACE):
        content = "\n".join([line.rstrip(WHITE_SPACE) for line in content.split("\n")])
    while "\n\n" in content:
        content = content.replace("\n\n", "\n")
    return _digest(content.strip("\n").encode())


def _digest(text: bytes) -> bytes:
    return hashlib.blake2b(text, digest_size=KEY_BYTES).digest()


def content_keys(contents: "pa.ChunkedArray") -> bytes:
    """`content_key` of every document, one after the other.

    Blank lines are taken out of all documents at once; those with white space at the end of a line go one by one.
    """
    return b"".join(_keys_of(chunk) for chunk in contents.chunks)


def _keys_of(contents: "pa.Array") -> bytes:
    data, borders = _bytes_of(contents)
    ends = np.flatnonzero(data == LINE_FEED)  # of lines
    before = data[ends - 1]
    is_first = np.isin(ends, borders)
    is_spaced = np.isin(before, SPACES) & ~is_first
    last = borders[1:] - 1
    spaced = np.isin(data[last], SPACES) & (borders[1:] > borders[:-1]) if len(data) else np.zeros(len(last), np.bool_)
    spaced[np.searchsorted(borders, ends[is_spaced], "right") - 1] = True
    blank = ends[is_first | (before == LINE_FEED)]
    kept = np.ones(len(data), np.bool_)
    kept[blank] = False
    borders = borders - np.searchsorted(blank, borders)
    rest = data[kept].tobytes()
    pieces = zip(borders[:-1].tolist(), borders[1:].tolist(), spaced.tolist(), strict=True)
    return b"".join(
        content_key(contents[index].as_py()) if is_spaced else _digest(rest[begin:end].removesuffix(b"\n"))
        for index, (begin, end, is_spaced) in enumerate(pieces)
    )


def _bytes_of(contents: "pa.Array") -> tuple[npt.NDArray[np.uint8], Indices]:
    """All texts in UTF-8, and where each begins, and the last ends."""
    _, borders, data = contents.buffers()
    places = np.frombuffer(borders, np.int32)[contents.offset : contents.offset + len(contents) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8)[places[0] : places[-1]] if data else np.empty(0, np.uint8)
    return text, places - places[0]


def ranks(documents: "pa.Table") -> Indices:
    """The place of every document in the order of preference, from 0, by the columns `PREFERENCE`.

    First those whose licence is known; then by the stars of the repository, most first; then by when it was changed
    last, latest first, since that one is maintained; what is not known comes last. Then by source, repository and
    path, so that the order does not depend on that of the documents.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = {"license": pc.is_null(documents["license"]).cast("int8")}
    for name in PREFERENCE[1:]:
        column = documents[name]
        columns[name] = column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column
    descending = ("stars", "updated")  # what is not known comes last, by default
    keys = [(name, "descending" if name in descending else "ascending") for name in PREFERENCE]
    order = pc.sort_indices(pa.table(columns), sort_keys=keys).to_numpy()
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found


def exact_duplicates(keys: Hashes, preference: Indices) -> tuple[Indices, Indices]:
    """(documents to drop, ascending; the one that stays for each): of every key the smallest `preference` stays.

    `keys` are those of `content_key` as two numbers each, shape (documents, 2). The result does not depend on the order
    of the documents as long as preferences differ.
    """
    order = np.lexsort((preference, keys[:, 1], keys[:, 0]))
    is_first = np.ones(len(order), np.bool_)
    is_first[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    stays = order[np.flatnonzero(is_first)[np.cumsum(is_first) - 1]]
    dropped, stays = order[~is_first], stays[~is_first]
    by_index = np.argsort(dropped)
    return dropped[by_index], stays[by_index]
