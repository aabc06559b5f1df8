"""Shingles: the runs of consecutive words in a text, as 64-bit hashes, without a loop over characters or words.

A word is a run of letters, digits, underscores and characters beyond ASCII. Its bytes are hashed eight at a time, for
all words of a chunk of texts at once, so that neither a character nor a word passes through Python; words of at most
eight bytes never collide. Equal runs have equal hashes, wherever they stand and in every process.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]
Texts = Sequence[str] | Sequence[bytes]
"""Bytes are UTF-8."""

WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]+")
"""A word, in the bytes of UTF-8."""
IS_WORD = bytes(WORD.fullmatch(bytes([byte])) is not None for byte in range(256))
"""1 for every byte of words, else 0."""
CHUNK_BYTES = 250_000
"""Text whose words are hashed at once: so much that the arrays stay in a cache of the processor."""
CHUNK_DOCUMENTS = 1000
LANE = 8
"""Bytes that are hashed at once."""
LANE_MASKS = np.array([(1 << 8 * size) - 1 for size in range(LANE + 1)], np.uint64)


@cache
def odd_numbers(purpose: int, *shape: int) -> Hashes:
    """Odd 64-bit numbers that never change."""
    return np.random.Generator(np.random.PCG64(purpose)).integers(0, 2**64, shape, np.uint64) | np.uint64(1)


def chunks(texts: Texts) -> Iterator[list[bytes]]:
    """The texts in UTF-8, as many at once as the caches of a processor hold."""
    chunk: list[bytes] = []
    size = 0
    for text in texts:
        chunk.append(text.encode() if isinstance(text, str) else text)
        size += len(chunk[-1])
        if size >= CHUNK_BYTES or len(chunk) == CHUNK_DOCUMENTS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def shingles(texts: Texts, width: int, min_words: int = 1) -> tuple[Hashes, Indices]:
    """(hashes, owners): of all runs of `width` words, repetitions included, and of which text each is, ascending.

    Texts of fewer than `min_words` words have none.
    """
    start, all_hashes, all_owners = 0, [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for chunk in chunks(texts):
        hashes, owners = shingles_of_chunk(chunk, width, min_words)
        all_hashes.append(hashes)
        all_owners.append(owners + start)
        start += len(chunk)
    return np.concatenate(all_hashes), np.concatenate(all_owners)


def shingles_of_chunk(chunk: Sequence[bytes], width: int, min_words: int) -> tuple[Hashes, Indices]:
    """`shingles` of one chunk."""
    text = b"\n".join([b"", *chunk, bytes(LANE)])  # so that a lane can be read wherever a word begins
    borders = _borders(text)
    words = _word_hashes(text, borders[0::2], borders[1::2])
    stops = np.searchsorted(borders, list(itertools.accumulate(len(part) + 1 for part in chunk)), side="right") // 2
    num_words = stops.copy()
    num_words[1:] -= stops[:-1]
    num_shingles = np.maximum(num_words - width + 1, 0) * (num_words >= min_words)
    runs = words[: max(0, len(words) - width + 1)].copy()
    for place in range(1, width):
        runs *= FACTOR
        runs += words[place : place + len(runs)]
    # Of every text the runs that it holds whole, then those that would reach into the next.
    lengths = np.empty((len(chunk), 2), np.int64)
    lengths[:, 0], lengths[:, 1] = num_shingles, num_words - num_shingles
    whole = np.repeat(np.arange(2 * len(chunk)) % 2 == 0, lengths.ravel())
    return mix(runs[whole[: len(runs)]]), np.repeat(np.arange(len(chunk)), num_shingles)


def _borders(text: bytes) -> Indices:
    """Where words begin and stop, in turns. The text begins and ends with what is no word."""
    inside = np.frombuffer(text.translate(IS_WORD), np.uint8)
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    borders += 1
    return borders


def _word_hashes(text: bytes, begins: Indices, stops: Indices) -> Hashes:
    """The first eight bytes of every word; of longer ones also the last eight and the length, and what is between."""
    lanes: Hashes = np.ndarray(len(text) - LANE + 1, np.dtype("<u8"), text, strides=(1,))  # one begins at every byte
    lengths = stops - begins
    hashes = lanes[begins]
    hashes &= LANE_MASKS.take(lengths, mode="clip")
    hashes *= SPREAD
    hashes ^= hashes >> np.uint64(32)
    long = np.flatnonzero(lengths > LANE)
    sizes = lengths[long]
    hashes[long] += mix(lanes[stops[long] - LANE] ^ (sizes.view(np.uint64) * FACTOR))
    longer = long[sizes > 2 * LANE]
    hashes[longer] += _between(lanes, begins[longer], lengths[longer])
    return hashes


def _between(lanes: Hashes, begins: Indices, lengths: Indices) -> Hashes:
    """Of words of more than sixteen bytes, the sum over the lanes after the first, hashed with their places."""
    num_lanes = (lengths - 1) // LANE - 1
    firsts = np.cumsum(num_lanes) - num_lanes
    places = np.arange(1, num_lanes.sum() + 1) - np.repeat(firsts, num_lanes)
    terms = mix(lanes[np.repeat(begins, num_lanes) + places * LANE] ^ (places.view(np.uint64) * FACTOR))
    return np.add.reduceat(terms, firsts) if len(firsts) else terms


def mix(hashes: Hashes) -> Hashes:
    """Spread over all 64 bits, one to one: what multiplication carries up, shifts carry down."""
    mixed = hashes >> np.uint64(32)
    mixed ^= hashes
    mixed *= SPREAD
    mixed ^= mixed >> np.uint64(29)
    return mixed


def distinct(hashes: Hashes, owners: Indices, num_texts: int) -> list[Hashes]:
    """The sorted, distinct shingles of every text."""
    borders = np.searchsorted(owners, np.arange(num_texts + 1))
    return [_distinct(hashes[begin:end]) for begin, end in itertools.pairwise(borders)]


def _distinct(hashes: Hashes) -> Hashes:
    ordered = np.sort(hashes)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


FACTOR, SPREAD = odd_numbers(2, 2)
