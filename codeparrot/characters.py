"""Characters that the two back ends of the tokenizer take for different kinds.

GPT-2's regular expression tells letters, digits and everything else apart. gigatoken 0.10 knows the letters and digits
of Unicode 17, `tokenizers` 0.23 those of Unicode 16, to which the newer ones are neither. So the two differ where one
of these 4,657 characters stands, and as far as is known nowhere else; tables of Unicode and tests of software for it
hold them. They all take three or four bytes in UTF-8.

A test compares the two on every character there is, so that other versions of theirs cannot make this table wrong.
"""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

DISPUTED = (
    (0x88F, 0x88F),
    (0xC5C, 0xC5C),
    (0xCDC, 0xCDC),
    (0xA7CE, 0xA7CF),
    (0xA7D2, 0xA7D2),
    (0xA7D4, 0xA7D4),
    (0xA7F1, 0xA7F1),
    (0x10940, 0x10959),
    (0x10EC5, 0x10EC7),
    (0x11DB0, 0x11DDB),
    (0x11DE0, 0x11DE9),
    (0x16EA0, 0x16EB8),
    (0x16EBB, 0x16ED3),
    (0x16FF2, 0x16FF6),
    (0x187F8, 0x187FF),
    (0x18D09, 0x18D1E),
    (0x18D80, 0x18DF2),
    (0x1E6C0, 0x1E6DE),
    (0x1E6E0, 0x1E6E2),
    (0x1E6E4, 0x1E6E5),
    (0x1E6E7, 0x1E6ED),
    (0x1E6F0, 0x1E6F4),
    (0x1E6FE, 0x1E6FF),
    (0x2B73A, 0x2B73F),
    (0x2CEA2, 0x2CEAD),
    (0x323B0, 0x33479),
)
"""The first and the last of each run of them."""

FIRSTS, LASTS = np.array(DISPUTED).T
LEADS_THREE, LEADS_FOUR = 0xE0, 0xF0
"""From which on a byte leads a character of three bytes, and of four (RFC 3629, section 3)."""


def text_buffers(column: "pa.LargeStringArray") -> tuple[Bytes, Int64]:
    """The bytes of all texts, and where each begins and the last one ends: shapes (bytes,), (texts + 1,). No copy."""
    if not len(column):
        return np.empty(0, np.uint8), np.zeros(1, np.int64)
    _, offsets, data = column.buffers()
    borders = np.frombuffer(offsets, np.int64)[column.offset :][: len(column) + 1]
    return np.frombuffer(data or b"", np.uint8)[borders[0] : borders[-1]], borders - borders[0]


def foreign_places(data: Bytes) -> Int64:
    """Where the bytes of characters beyond ASCII are: shape (places,). Eight bytes are looked at in one."""
    eights = data[: len(data) // 8 * 8].view(np.uint64)
    hits = np.flatnonzero(eights & np.uint64(0x8080808080808080))
    near = np.concatenate([(hits[:, None] * 8 + np.arange(8)).ravel(), np.arange(len(eights) * 8, len(data))])
    places: Int64 = near[data[near] >= 0x80]
    return places


def disputed_texts(data: Bytes, borders: Int64) -> Int64:
    """Which of these texts (`text_buffers`) hold such a character: their numbers, ascending."""
    places = foreign_places(data)
    places = places[data[places] >= LEADS_THREE]
    codes = _codes(data, places)
    run = np.searchsorted(FIRSTS, codes, side="right") - 1
    places = places[(run >= 0) & (codes <= LASTS[run])]
    return np.unique(np.searchsorted(borders, places, side="right") - 1)


def _codes(data: Bytes, places: Int64) -> Int64:
    """The characters of three or four bytes that begin at these places."""
    lead, *following = (data[places + n].astype(np.int64) for n in range(3))
    codes: Int64 = lead & 0x0F
    for byte in following:
        codes = codes << 6 | byte & 0x3F
    four = lead >= LEADS_FOUR
    codes[four] = (codes[four] & 0x7FFF) << 6 | data[places[four] + 3] & 0x3F
    return codes
