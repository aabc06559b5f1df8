"""How often each word of a corpus occurs: all that merges are learned from.

Words are what GPT-2's regular expression cuts a text into. Lines with characters that are cut otherwise by gigatoken
than by `tokenizers` (`codeparrot.characters`) are left out: a few dozen in hundreds of megabytes of code, for which
everything else would have to be learned more slowly.

A table of counts has the columns `word` (bytes, ascending) and `count`. Tables of parts of a corpus add up to that of
the whole, in any order, so a corpus can be counted shard by shard.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from codeparrot.characters import disputed_texts

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR = b"\0"  # no document contains it: `documents.decode` rejects binary files


def learnable(texts: Sequence[bytes]) -> bytes:
    """What is learned from, of these UTF-8 texts, with a separator between them."""
    data = SEPARATOR.join(texts)
    disputed = _disputed(texts, data)
    if not disputed:
        return data
    kept = list(texts)
    for number in disputed:
        lines = texts[number].splitlines(keepends=True)
        out = {*_disputed(lines, SEPARATOR.join(lines))}
        kept[number] = b"".join(line for place, line in enumerate(lines) if place not in out)
    return SEPARATOR.join(kept)


def _disputed(texts: Sequence[bytes], data: bytes) -> list[int]:
    borders = np.cumsum([0, *(len(text) + len(SEPARATOR) for text in texts)])
    numbers: list[int] = disputed_texts(np.frombuffer(data, np.uint8), borders).tolist()
    return numbers


def count_words(texts: Sequence[bytes]) -> "pa.Table":
    """The counts of these UTF-8 texts."""
    import pyarrow as pa
    from gigatoken.gigatoken_rs import pretokenized_counts

    found = sorted(pretokenized_counts(learnable(texts), SEPARATOR))
    words, counts = [word for word, _ in found], [count for _, count in found]
    return pa.table({"word": pa.array(words, pa.large_binary()), "count": pa.array(counts, pa.int64())})


def add_up(tables: "Sequence[pa.Table]") -> "pa.Table":
    """The counts of all parts together."""
    import pyarrow as pa

    total = pa.concat_tables(tables).group_by("word", use_threads=False).aggregate([("count", "sum")])
    return total.rename_columns({"count_sum": "count"}).select(["word", "count"]).sort_by("word")
