"""Best-fit decreasing over counts: how many rows of which make-up hold pieces of given lengths.

Pieces are placed from the longest to the shortest, each into the fullest row that still has room for it (Ding et al.,
"Fewer Truncations Improve Language Modeling", 2024, section 3). Pieces of one length stand in for each other, so what
is placed is not pieces but numbers of them, into numbers of equal rows: of c pieces of length n, every one of the rows
with room r takes r div n at once, since what is left of the fullest row that fits is the fullest again. The work
therefore depends on the distinct lengths alone, of which there are at most `max_seq_len`, not on the number of pieces.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Pattern = tuple[tuple[int, int], ...]
"""What a row is made of: (length, how many pieces of it), the longest first."""

SPREAD = np.uint64(0x9E3779B97F4A7C15)  # 2**64 divided by the golden ratio (Knuth, TAOCP volume 3, section 6.4)


def best_fit(counts: npt.NDArray[Any]) -> list[tuple[Pattern, int]]:
    """(pattern, number of rows that have it), the fullest beginnings first.

    `counts`: how many pieces have each length, shape (max_seq_len + 1,); none has length 0.
    """
    max_seq_len = len(counts) - 1
    open_rows: list[list[tuple[Pattern, int]]] = [[] for _ in range(max_seq_len + 1)]
    rooms = 0
    """Bit r: there are open rows with room for r more."""
    for length in range(max_seq_len, 0, -1):
        left = int(counts[length])
        while left:
            above = rooms >> length
            room = length + (above & -above).bit_length() - 1 if above else max_seq_len
            pattern, num_rows = open_rows[room].pop() if above else ((), left)
            if above and not open_rows[room]:
                rooms ^= 1 << room
            each = min(left, room // length)
            filled = min(num_rows, left // each)
            left -= filled * each
            rest = [(pattern, num_rows - filled, room)] if above else []
            rest.append(((*pattern, (length, each)), filled, room - each * length))
            for made, number, free in rest:
                if number:
                    open_rows[free].append((made, number))
                    rooms |= 1 << free
    found = [(pattern, number) for rows in open_rows for pattern, number in rows]
    return sorted(found, reverse=True)


@dataclass(frozen=True)
class Slots:
    """The places of pieces in rows, row by row."""

    row: Int64
    """(slots,) ascending."""
    length: Int64
    """(slots,)"""


def slots(patterns: list[tuple[Pattern, int]]) -> Slots:
    """The rows of these patterns, mixed: any run of rows is a sample of all of them.

    Fibonacci hashing spreads neighbours evenly and leaves neighbours of a sample evenly far apart.
    """
    lengths = [np.repeat([n for n, _ in pattern], [count for _, count in pattern]) for pattern, _ in patterns]
    sizes = np.array([len(each) for each in lengths], dtype=np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *lengths])
    kinds = np.repeat(np.arange(len(patterns)), [number for _, number in patterns])
    kinds = kinds[np.argsort(np.arange(len(kinds), dtype=np.uint64) * SPREAD, kind="stable")]
    num_slots = sizes[kinds]
    row = np.repeat(np.arange(len(kinds)), num_slots)
    within = np.arange(len(row)) - np.repeat(np.cumsum(num_slots) - num_slots, num_slots)
    first = (np.cumsum(sizes) - sizes)[kinds]
    return Slots(row, flat[first[row] + within])
