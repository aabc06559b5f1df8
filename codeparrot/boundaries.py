"""Where documents begin within packed rows: positions that start anew, and tokens that may see each other.

A packed shard has beside its rows the numbers, within the shard, of the tokens with which a document, the rest of one,
or padding begins: shape (starts,), ascending. They cannot be read off the tokens: a row may begin in the middle of a
document, a document may end with the row, and padding is made of the token that ends a document.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]


def row_starts(starts: npt.NDArray[Any], row: int, max_seq_len: int) -> Int64:
    """The starts in one row of the shard, as offsets in it: the first is 0."""
    low, high = np.searchsorted(starts, (row * max_seq_len, (row + 1) * max_seq_len))
    return starts[low:high].astype(np.int64) - row * max_seq_len


def positions(starts: Int64, max_seq_len: int) -> Int64:
    """How far each token is from the last start: shape (max_seq_len,)."""
    return np.arange(max_seq_len) - np.repeat(starts, np.diff(starts, append=max_seq_len))


def segments(starts: Int64, max_seq_len: int) -> Int64:
    """Which start each token belongs to, counted from 0: tokens of one segment may see each other. (max_seq_len,)"""
    return np.repeat(np.arange(len(starts)), np.diff(starts, append=max_seq_len))
