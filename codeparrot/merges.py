"""Learning merges: those that the BpeTrainer of `tokenizers` learns, by gigatoken or from counts of words.

gigatoken is the fastest, but takes no counts, and goes on merging pairs that occur no more when none is left that does.
So where it may differ, and for corpora whose words were counted in parts, there is a learner of our own.

There, all distinct words lie in one array of symbols, linked to their neighbours within the word; every pair of symbols
knows where it stands. A merge touches those places alone, all at once. The pair that occurs most often is merged next,
of equals the one with the smaller ids (`tokenizers` orders its queue so); a pair's count can only fall after the step
that made it, so a queue entry that is out of date is put back where it belongs when it comes up.

Memory: about 40 bytes for each byte of distinct words.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from codeparrot.characters import text_buffers
from codeparrot.words import SEPARATOR, learnable

if TYPE_CHECKING:
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]
Merges = list[tuple[bytes, bytes]]

NUM_BYTES = 256
GONE = -1
SHIFT = 32
"""A pair of ids as one number: left << SHIFT | right, in the order of pairs."""
SMALL_BYTES = 16_000_000
"""Text for which our own learner takes no longer than gigatoken, which is slow where words are few."""
NUM_LOOKED_AT = 100


@dataclass(frozen=True)
class _Symbols:
    """The symbols of all words, each at its place: arrays of shape (bytes of all words,)."""

    ids: npt.NDArray[np.int32]
    """GONE: it is part of the symbol before."""
    before: Int64
    """The place of the symbol before it in its word, or GONE."""
    after: Int64
    count: Int64
    """How often its word occurs."""


def learn_merges(words: "pa.Table", ids: Int64, num_merges: int) -> list[tuple[int, int]]:
    """At most `num_merges` pairs of ids, in the order in which they are merged; fewer if no more pairs occur.

    `words`: counts (`codeparrot.words`); `ids`: of the 256 bytes. What pair n makes has the id `max(ids) + 1 + n`.
    """
    symbols = _symbols(words, ids)
    left = np.flatnonzero(symbols.after != GONE)
    places: dict[int, Int64] = {}
    totals: dict[int, int] = {}
    for pair, total, where in _by_pair(_pairs(symbols, left), left, symbols.count[left]):
        places[pair], totals[pair] = where, total
    queue = [(-total, pair) for pair, total in totals.items()]
    heapq.heapify(queue)
    merges: list[tuple[int, int]] = []
    first = int(ids.max()) + 1
    while queue and len(merges) < num_merges:
        total, pair = heapq.heappop(queue)
        if -total != totals[pair]:
            if totals[pair]:
                heapq.heappush(queue, (-totals[pair], pair))
            else:
                del totals[pair], places[pair]
            continue
        lost, made = _merge(symbols, pair, places.pop(pair), first + len(merges))
        merges.append(_sides(pair))
        for other, change, _ in lost:
            totals[other] -= change
        del totals[pair]
        for other, total, where in made:
            places[other], totals[other] = where, total
            heapq.heappush(queue, (-total, other))
    return merges


def _sides(pair: int) -> tuple[int, int]:
    return pair >> SHIFT, pair & (1 << SHIFT) - 1


def _symbols(words: "pa.Table", ids: Int64) -> _Symbols:
    """No word is empty."""
    data, borders = text_buffers(words["word"].combine_chunks())
    place = np.arange(len(data))
    before, after = place - 1, place + 1
    before[borders[:-1]] = after[borders[1:] - 1] = GONE
    count = np.repeat(words["count"].to_numpy(), np.diff(borders))
    return _Symbols(ids.astype(np.int32)[data], before, after, count)


def _pairs(symbols: _Symbols, left: Int64) -> Int64:
    return symbols.ids[left].astype(np.int64) << SHIFT | symbols.ids[symbols.after[left]]


Found = list[tuple[int, int, Int64]]
"""(pair, how often, where it stands), of each pair."""


def _by_pair(pairs: Int64, places: Int64, counts: Int64) -> Found:
    if not len(pairs):
        return []
    order = np.argsort(pairs, kind="stable")
    pairs = pairs[order]
    first = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
    totals = np.add.reduceat(counts[order], first)
    stops = [*first[1:].tolist(), len(pairs)]
    places = places[order]
    starts = first.tolist()
    where = [places[start:stop] for start, stop in zip(starts, stops, strict=True)]
    return list(zip(pairs[first].tolist(), totals.tolist(), where, strict=True))


def _merge(symbols: _Symbols, pair: int, places: Int64, made: int) -> tuple[Found, Found]:
    """Merge the pair wherever it still stands; what stood there instead of it before, and what stands there now."""
    ids, before, after, count = symbols.ids, symbols.before, symbols.after, symbols.count
    first, second = _sides(pair)
    left = places[(ids[places] == first) & (after[places] != GONE)]
    left = left[ids[after[left]] == second]
    if first == second:
        left = _every_second(left, after)
    right = after[left]
    ahead, behind = before[left], after[right]
    lost_behind = right[behind != GONE]
    pairs_behind = _pairs(symbols, lost_behind)
    ids[right] = GONE  # so that a pair between two places that merge is lost once, as what is behind the first
    lost_ahead = ahead[(ahead != GONE) & (ids[ahead] != GONE)]
    lost = np.concatenate([lost_ahead, lost_behind])
    pairs = np.concatenate([_pairs(symbols, lost_ahead), pairs_behind])
    lost_pairs = _by_pair(pairs, lost, count[lost])
    ids[left], after[left] = made, behind
    before[behind[behind != GONE]] = left[behind != GONE]
    ahead = before[left]
    ahead = ahead[(ahead != GONE) & (ids[ahead] != made)]
    new = np.concatenate([left[behind != GONE], ahead])
    return lost_pairs, _by_pair(_pairs(symbols, new), new, count[new])


def _every_second(places: Int64, after: Int64) -> Int64:
    """Of every run of adjacent places the first, the third and so on: a symbol merges once."""
    number = np.arange(len(places))
    begins = np.concatenate([[True], after[places[:-1]] != places[1:]])[: len(places)]
    odd: Int64 = places[(number - np.maximum.accumulate(np.where(begins, number, 0))) % 2 == 0]
    return odd


def fast_merges(texts: Sequence[bytes], special_token: str, vocab_size: int) -> Merges | None:
    """What gigatoken learns; None if that may not be what `tokenizers` learns, or our own learner is as fast."""
    from gigatoken import train_bpe

    data = learnable(texts)
    if len(data) < SMALL_BYTES or vocab_size == NUM_BYTES + 1:
        return None
    merges: Merges = train_bpe(data, vocab_size, [special_token], separator=SEPARATOR)[1]
    complete = len(merges) == vocab_size - NUM_BYTES - 1
    return merges if complete and _last_occurs(data, merges) else None


def _last_occurs(data: bytes, merges: Merges) -> bool:
    """Whether the token of the last merge is in the corpus; gigatoken goes on when no pair is left that is.

    Counts never rise, so all merges before it were of pairs that occurred, too. Only a few documents are looked at.
    """
    from gigatoken import pretokenizer

    token, rank = b"".join(merges[-1]), {pair: number for number, pair in enumerate(merges)}
    place = data.find(token)
    for _ in range(NUM_LOOKED_AT):
        if place < 0:
            return False
        begin, end = data.rfind(SEPARATOR, 0, place) + 1, data.find(SEPARATOR, place)
        document = data[begin : end if end >= 0 else len(data)]
        if any(token in word and token in _segments(word, rank) for word in pretokenizer(document)):
            return True
        place = data.find(token, begin + len(document))
    return False


def _segments(word: bytes, rank: dict[tuple[bytes, bytes], int]) -> list[bytes]:
    """The tokens of one word."""
    tokens = [word[place : place + 1] for place in range(len(word))]
    while len(tokens) > 1:
        best = min(pairwise(tokens), key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        place = 0
        while place < len(tokens) - 1:
            if (tokens[place], tokens[place + 1]) == best:
                tokens[place : place + 2] = [b"".join(best)]
            place += 1
    return tokens
