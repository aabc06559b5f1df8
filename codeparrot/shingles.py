"""Shingles: the runs of consecutive words in a text, as 64-bit hashes, without a loop over characters or words.

A word is a run of letters, digits, underscores and characters beyond ASCII. Its bytes are hashed eight at a time, for
all words of a chunk at once, so that neither a character nor a word passes through Python; words of at most eight bytes
never collide. Equal runs have equal hashes, wherever they stand and in every process.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]

WORD = re.compile(rb"[0-9A-Za-z_\x80-\xff]+")
"""A word, in the bytes of UTF-8."""
IS_WORD = bytes(WORD.fullmatch(bytes([byte])) is not None for byte in range(256))
"""1 for every byte of words, else 0."""
CHUNK_BYTES = 250_000
"""Text whose words are hashed at once: so much that the arrays stay in a cache of the processor."""
LANE = 8
"""Bytes that are hashed at once."""
LANE_MASKS = np.array([(1 << 8 * size) - 1 for size in range(LANE + 1)], np.uint64)
LONG_WORD = 256
"""Words of more bytes, which are data rather than words, are hashed one by one."""


@cache
def odd_numbers(purpose: int, *shape: int) -> Hashes:
    """Odd 64-bit numbers that never change."""
    return np.random.Generator(np.random.PCG64(purpose)).integers(0, 2**64, shape, np.uint64) | np.uint64(1)


def shingles(texts: Sequence[str], width: int, min_words: int = 1) -> tuple[Hashes, Indices]:
    """(hashes, owners): of all runs of `width` words, repetitions included, and of which text each is, ascending.

    Texts of fewer than `min_words` words have none.
    """
    found, start = [], 0
    while start < len(texts):
        size, stop = 0, start
        data = []
        while stop < len(texts) and (stop == start or size < CHUNK_BYTES):
            data.append(texts[stop].encode())
            size += len(data[-1]) + 1
            stop += 1
        hashes, owners = _shingles_of(data, width, min_words)
        found.append((hashes, owners + start))
        start = stop
    if not found:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    return np.concatenate([hashes for hashes, _ in found]), np.concatenate([owners for _, owners in found])


def _shingles_of(data: Sequence[bytes], width: int, min_words: int) -> tuple[Hashes, Indices]:
    joined = b"\n".join(data) + b"\n"
    begins, stops = _words(joined)
    words = _word_hashes(joined, begins, stops)
    counts = np.diff(np.searchsorted(begins, np.cumsum([len(text) + 1 for text in data])), prepend=0)
    owners = np.repeat(np.arange(len(data)), counts)
    num_shingles = max(0, len(words) - width + 1)
    mixed = np.zeros(num_shingles, np.uint64)
    for place, factor in enumerate(odd_numbers(2, width)):
        mixed += words[place : place + num_shingles] * factor
    first, last = owners[:num_shingles], owners[width - 1 : width - 1 + num_shingles]
    whole = (first == last) & (counts >= min_words)[first]
    return mix(mixed[whole]), first[whole]


def _words(text: bytes) -> tuple[Indices, Indices]:
    """Where each word begins, and where it stops. The text ends with what is no word."""
    inside = np.frombuffer(b"\0" + text.translate(IS_WORD), np.uint8)
    borders = np.flatnonzero(inside[1:] != inside[:-1])
    return borders[0::2], borders[1::2]


def _word_hashes(text: bytes, begins: Indices, stops: Indices) -> Hashes:
    lanes: Hashes = np.ndarray(len(text), np.dtype("<u8"), text + bytes(LANE), strides=(1,))  # begins at every byte
    lengths = stops - begins
    hashes = lanes[begins] & LANE_MASKS[np.minimum(lengths, LANE)]
    rest = np.flatnonzero((lengths > LANE) & (lengths <= LONG_WORD))
    for offset in range(LANE, LONG_WORD, LANE):
        if not len(rest):
            break
        lane = lanes[begins[rest] + offset] & LANE_MASKS[np.minimum(lengths[rest] - offset, LANE)]
        hashes[rest] = mix(hashes[rest]) ^ lane
        rest = rest[lengths[rest] > offset + LANE]
    for index in np.flatnonzero(lengths > LONG_WORD).tolist():
        digest = hashlib.blake2b(text[begins[index] : stops[index]], digest_size=LANE).digest()
        hashes[index] = int.from_bytes(digest, "little")
    return mix(hashes)


def mix(hashes: Hashes) -> Hashes:
    """Spread over all 64 bits (the finaliser of SplitMix64, Steele, Lea, Flood 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def distinct(hashes: Hashes, owners: Indices, num_texts: int) -> list[Hashes]:
    """The sorted, distinct shingles of every text."""
    borders = np.searchsorted(owners, np.arange(num_texts + 1))
    return [np.unique(hashes[begin:end]) for begin, end in itertools.pairwise(borders)]
