"""Shingles: the runs of consecutive words in a text, as 64-bit hashes, without a loop over characters or words.

A word is a run of letters, digits, underscores and characters beyond ASCII. Its hash is a difference of prefix sums
over a polynomial modulo 2^64, so that neither a character nor a word passes through Python. Equal runs have equal
hashes, wherever they stand and in every process.
"""

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
CHUNK_BYTES = 250_000
"""Text whose words are hashed at once: so much that the arrays, 8 bytes per byte, stay in a cache of the processor."""
KEPT_POWERS = 2 * CHUNK_BYTES


@cache
def odd_numbers(purpose: int, *shape: int) -> Hashes:
    """Odd 64-bit numbers that never change."""
    return np.random.Generator(np.random.PCG64(purpose)).integers(0, 2**64, shape, np.uint64) | np.uint64(1)


@cache
def _is_word() -> npt.NDArray[np.bool_]:
    """Whether a byte of UTF-8 belongs to a word."""
    return np.array([WORD.fullmatch(bytes([byte])) is not None for byte in range(256)])


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
    joined = np.frombuffer(b"\n".join(data) + b"\n", np.uint8)
    ends = np.cumsum([len(text) + 1 for text in data])
    inside = np.concatenate([[False], _is_word()[joined]])
    begins = np.flatnonzero(inside[1:] & ~inside[:-1])
    stops = np.flatnonzero(~inside[1:] & inside[:-1])
    words = _word_hashes(joined, begins, stops)
    owners = np.searchsorted(ends, begins, side="right")
    enough = np.bincount(owners, minlength=len(data)) >= min_words
    num_shingles = max(0, len(words) - width + 1)
    mixed = np.zeros(num_shingles, np.uint64)
    for place, factor in enumerate(odd_numbers(2, width)):
        mixed += words[place : place + num_shingles] * factor
    first, last = owners[:num_shingles], owners[width - 1 : width - 1 + num_shingles]
    whole = (first == last) & enough[first]
    return mix(mixed[whole]), first[whole]


def _word_hashes(joined: npt.NDArray[np.uint8], begins: Indices, stops: Indices) -> Hashes:
    """Of every word, sum(c_j * B^j) with j from its first byte: a difference of prefix sums times B^-begin."""
    base = int(odd_numbers(0, 1)[0])
    length = len(joined) + 1
    powers, inverses = _powers(base, length), _powers(pow(base, -1, 2**64), length)
    sums = np.zeros(length, np.uint64)
    np.cumsum(odd_numbers(1, 256)[joined] * powers[:-1], out=sums[1:])
    return mix((sums[stops] - sums[begins]) * inverses[begins])


def _powers(base: int, length: int) -> Hashes:
    """base^0 .. base^(length-1), modulo 2^64."""
    return _kept_powers(base)[:length] if length <= KEPT_POWERS else _new_powers(base, length)


@cache
def _kept_powers(base: int) -> Hashes:
    return _new_powers(base, KEPT_POWERS)


def _new_powers(base: int, length: int) -> Hashes:
    factors = np.full(length, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def mix(hashes: Hashes) -> Hashes:
    """Spread over all 64 bits (the finaliser of SplitMix64, Steele, Lea, Flood 2014)."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def distinct(hashes: Hashes, owners: Indices, num_texts: int) -> list[Hashes]:
    """The sorted, distinct shingles of every text."""
    borders = np.searchsorted(owners, np.arange(num_texts + 1))
    return [np.unique(hashes[begin:end]) for begin, end in itertools.pairwise(borders)]
