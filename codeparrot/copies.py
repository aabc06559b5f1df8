"""How much of a text stands word for word in the training rows: memorisation.

What is looked for (completions, some thousand tokens) is small and what it is looked for in is large, so the runs of
NGRAM tokens of the texts are put into a table, and the rows stream past it once: no index of the corpus has to be
built, stored or kept up to date, memory is that of one packed shard and a little, and shards can be searched side by
side. A hit is compared token by token before it counts, so hashes decide nothing; neighbouring hits make up the
longest match.

The cost is one pass over the rows, whatever the number of texts. Not covered: a match across two packed shards is seen
as two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from codeparrot.shingles import mix, odd_numbers

Hashes = npt.NDArray[np.uint64]
Int64 = npt.NDArray[np.int64]
Tokens = npt.NDArray[Any]

NGRAM = 8
"""Tokens of the shortest match that counts: about thirty characters of code."""
CHUNK = 1 << 18
"""Tokens of the corpus whose hashes are held at once."""
DENSE = 1 << 22
"""Pairs of places, in texts and corpus, that are compared at once: what repeats itself in both has very many."""
TABLE_BITS = 20
SIDES: tuple[Literal["left", "right"], ...] = ("right", "left")
PURPOSE = 7  # of the hash: another one than shingles take


@dataclass(frozen=True)
class Match:
    """What of one text is in the corpus."""

    longest: int
    """Tokens of the longest match; 0: none of NGRAM or more."""
    place: int
    """Where it begins in the corpus, as a number of a token; -1: nowhere."""
    covered: npt.NDArray[np.bool_]
    """Which tokens of the text stand in a match: shape (tokens,)."""


class Texts:
    """Texts to look for, as token ids."""

    def __init__(self, texts: Sequence[Tokens]) -> None:
        self.lengths = np.array([len(text) for text in texts], np.int64)
        self._tokens: Int64 = np.concatenate([np.empty(0, np.int64), *(np.asarray(text, np.int64) for text in texts)])
        text_of = np.repeat(np.arange(len(texts)), self.lengths)
        grams = ngrams(self._tokens)
        inside = np.flatnonzero(text_of[: len(grams)] == text_of[NGRAM - 1 :][: len(grams)])
        order = np.argsort(grams[inside], kind="stable")
        self._places = inside[order]
        self._grams = grams[self._places]
        self._text_of = text_of
        self._table = np.zeros(1 << TABLE_BITS, bool)
        self._table[_slot(self._grams)] = True

    def find(self, corpus: Tokens, row_tokens: int | None = None) -> list[Match]:
        """The matches of every text in a corpus: shape (tokens,).

        `row_tokens`: of a row, if rows do not continue each other.
        """
        longest, place = np.zeros(len(self.lengths), np.int64), np.full(len(self.lengths), -1, np.int64)
        covered = np.zeros(len(self._tokens) + 1, np.int64)
        for ours, theirs, length in self._runs(corpus, row_tokens):
            np.add.at(covered, ours, 1)
            np.add.at(covered, ours + length, -1)
            found = (self._text_of[ours], theirs, length)
            for text, begin, size in zip(*(values.tolist() for values in found), strict=True):
                if size > longest[text] or (size == longest[text] and begin < place[text]):
                    longest[text], place[text] = size, begin
        inside, ends = np.cumsum(covered)[:-1] > 0, np.cumsum(self.lengths)
        return [
            Match(size, begin, part)
            for size, begin, part in zip(longest.tolist(), place.tolist(), np.split(inside, ends)[:-1], strict=True)
        ]

    def _runs(self, corpus: Tokens, row_tokens: int | None) -> Iterator[tuple[Int64, Int64, Int64]]:
        """Matches as (where in the texts, where in the corpus, tokens), some of them parts of others."""
        if not len(self._grams):
            return
        reach = int(self.lengths.max())  # a match may begin before a block and end behind it
        for start in range(0, max(0, len(corpus) - NGRAM + 1), CHUNK):
            grams = ngrams(corpus[start : start + CHUNK + NGRAM - 1 + reach])
            hits = np.flatnonzero(self._table[_slot(grams)])
            if row_tokens is not None:
                hits = hits[(start + hits) % row_tokens + NGRAM <= row_tokens]
            pairs = np.cumsum(np.subtract(*(np.searchsorted(self._grams, grams[hits], side) for side in SIDES)))
            low = 0
            while low < len(hits) and hits[low] < CHUNK:
                before = int(pairs[low - 1]) if low else 0
                stop = max(low + 1, int(np.searchsorted(pairs, before + DENSE, side="right")))
                high = int(np.searchsorted(hits, hits[stop - 1] + reach, side="right"))
                yield from self._expanded(corpus, start, grams, hits[low:high])
                low = stop

    def _expanded(self, corpus: Tokens, start: int, grams: Hashes, hits: Int64) -> Iterator[tuple[Int64, Int64, Int64]]:
        first = np.searchsorted(self._grams, grams[hits], side="left")
        number = np.searchsorted(self._grams, grams[hits], side="right") - first
        theirs = np.repeat(start + hits, number)
        nth = np.arange(len(theirs)) - np.repeat(np.cumsum(number) - number, number)
        ours = self._places[np.repeat(first, number) + nth]
        same = np.ones(len(ours), bool)
        for offset in range(NGRAM):
            same &= self._tokens[ours + offset] == corpus[theirs + offset]
        ours, theirs = ours[same], theirs[same]
        if not len(ours):
            return
        order = np.lexsort((ours, theirs - ours))
        ours, theirs = ours[order], theirs[order]
        begins = np.flatnonzero(np.concatenate([[True], (np.diff(ours) != 1) | (np.diff(theirs) != 1)]))
        size = np.diff(begins, append=len(ours)) + NGRAM - 1
        yield ours[begins], theirs[begins], size


def ngrams(tokens: Tokens) -> Hashes:
    """A hash of every run of NGRAM tokens: shape (tokens - NGRAM + 1,)."""
    number = max(0, len(tokens) - NGRAM + 1)
    found = np.zeros(number, np.uint64)
    wide = tokens.astype(np.uint64)
    for place, factor in enumerate(odd_numbers(PURPOSE, NGRAM)):
        found += wide[place : place + number] * factor
    return mix(found)


def _slot(grams: Hashes) -> Hashes:
    return grams & np.uint64((1 << TABLE_BITS) - 1)


def best(found: Sequence[Match]) -> Match:
    """What several parts of a corpus say of one text; places count from the beginning of all of them."""
    longest = max(found, key=lambda match: match.longest)
    return Match(longest.longest, longest.place, np.any([match.covered for match in found], axis=0))
