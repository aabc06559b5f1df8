"""How often each word of a corpus occurs: all that merges are learned from.

Words are what GPT-2's regular expression cuts a text into. gigatoken counts them, but for the few texts on which it
and `tokenizers` may differ (`codeparrot.characters`): those are cut by `tokenizers`.

A table of counts has the columns `word` (bytes, ascending) and `count`. Tables of parts of a corpus add up to that of
the whole, in any order, so a corpus can be counted shard by shard.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codeparrot.characters import disputed_texts

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR = b"\0"  # no document contains it: `documents.decode` rejects binary files


def joined(texts: Sequence[bytes]) -> tuple[bytes, npt.NDArray[np.int64]]:
    """The texts with a separator between them, and which of them hold disputed characters."""
    data = SEPARATOR.join(texts)
    borders = np.cumsum([0, *(len(text) + len(SEPARATOR) for text in texts)])
    return data, disputed_texts(np.frombuffer(data, np.uint8), borders)


def count_words(texts: Sequence[bytes]) -> "pa.Table":
    """The counts of these UTF-8 texts."""
    import pyarrow as pa
    from gigatoken.gigatoken_rs import pretokenized_counts

    data, disputed = joined(texts)
    if len(disputed):
        apart = set(disputed.tolist())
        data = SEPARATOR.join(text for number, text in enumerate(texts) if number not in apart)
    counts = Counter(dict(pretokenized_counts(data, SEPARATOR)))
    for number in disputed:
        counts.update(_words(texts[number].decode()))
    words = sorted(counts)
    return pa.table(
        {
            "word": pa.array(words, pa.large_binary()),
            "count": pa.array([counts[word] for word in words], pa.int64()),
        }
    )


def _words(text: str) -> list[bytes]:
    """What `tokenizers` cuts a text into."""
    from tokenizers import pre_tokenizers

    found = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [text[start:stop].encode() for _, (start, stop) in found]


def add_up(tables: "Sequence[pa.Table]") -> "pa.Table":
    """The counts of all parts together."""
    import pyarrow as pa

    total = pa.concat_tables(tables).group_by("word", use_threads=False).aggregate([("count", "sum")])
    return total.rename_columns({"count_sum": "count"}).select(["word", "count"]).sort_by("word")
