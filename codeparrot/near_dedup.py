"""Near duplicates: MinHash nominates, the exact Jaccard similarity decides, and every removal can be justified.

A document is the set of its shingles: `shingle_words` consecutive words, as 64-bit hashes. Documents that share a band
of their MinHash signatures are candidates. In the order of preference, each candidate is compared with those that were
kept before it: it goes if its similarity to one of them reaches the threshold, and is kept otherwise. So whatever goes
has a kept document that is as similar as was asked for (in a chain A~B~C whose ends differ, B goes and C stays), the
result does not depend on the order in which documents come, and a thousand copies cost a thousand comparisons. A crowd
that is alike, but not alike enough, costs at most `max_rivals` for each; whom that leaves out is counted.

Signatures: one-permutation hashing (Li, Owen, Zhang 2012) with optimal densification (Shrivastava 2017): one hash per
shingle instead of one per shingle and permutation, with the same expectation. Bands: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", 3.4.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from codeparrot.settings import Settings
from codeparrot.shingles import Hashes, Indices, Texts, chunks, mix, odd_numbers, shingles_of_chunk

MIN_CATCH_PROBABILITY = 0.9
NUM_BINS = 256
BIN_BITS = 8
NUM_PROBES = 8
PROBES = (odd_numbers(3, NUM_PROBES, NUM_BINS) >> np.uint64(64 - BIN_BITS)).view(np.int64)
RANKS = odd_numbers(5, NUM_BINS, NUM_BINS)
EMPTY = np.uint64(2**64 - 1)
"""No value of a bin, but for one hash in 2^64."""

KEYS_VERSION = 2
"""Raised whenever equal documents get other keys than before."""
SHAPES_KEYS = {"shingle_words", "min_words", "num_bands", "rows_per_band"}


class NearDedupSettings(Settings):
    """What counts as nearly the same."""

    threshold: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Jaccard similarity of the sets of shingles from which two documents are near duplicates."""
    shingle_words: PositiveInt = 5
    """Consecutive words that are one shingle."""
    min_words: PositiveInt = 20
    """Shorter documents are not compared: they are similar by chance, and caught less often than the curve says."""
    num_bands: PositiveInt = 25
    """Documents that agree in one band are compared. Each costs 8 bytes per document in the store."""
    rows_per_band: PositiveInt = 10
    """Values of the signature per band. More: fewer comparisons, and more near duplicates that are missed."""
    max_rivals: PositiveInt = 100
    """Kept documents with which one is compared at most, and which are remembered for a band at most: thousands that
    are alike, but not alike enough, would be compared each with each. Who shares many and rare keys comes first."""
    against: tuple[str, ...] = ()
    """Stores of other recipes (`storage.uri`), curated before: documents that are near to one kept there go."""

    @model_validator(mode="after")
    def _fit(self) -> "NearDedupSettings":
        if self.num_bands * self.rows_per_band > NUM_BINS:
            raise ValueError(
                f"num_bands x rows_per_band must be <= {NUM_BINS}, the length of a signature, "
                f"got {self.num_bands} x {self.rows_per_band}"
            )
        if self.catch_probability(self.threshold) < MIN_CATCH_PROBABILITY:
            raise ValueError(
                f"only {self.catch_probability(self.threshold):.1%} of pairs at threshold {self.threshold} would be "
                "compared; lower rows_per_band"
            )
        return self

    @property
    def keys_are_of(self) -> dict[str, int]:
        """Documents have comparable keys if these are equal."""
        return {"version": KEYS_VERSION, **self.model_dump(include=SHAPES_KEYS)}

    def catch_probability(self, similarity: float) -> float:
        """The chance that two documents of this similarity are compared: 1 - (1 - s^rows)^bands."""
        return float(1 - (1 - similarity**self.rows_per_band) ** self.num_bands)


@dataclass(frozen=True)
class Removal:
    """One near duplicate that goes."""

    index: int
    kept: int
    """The index of the document that stands for it."""
    similarity: float
    """Jaccard, of the sets of shingles."""


def signatures(hashes: Hashes, owners: Indices, num_documents: int) -> Hashes:
    """(num_documents, 256): the smallest hash of each bin. Documents without shingles: all EMPTY."""
    table = np.full(num_documents * NUM_BINS, EMPTY)
    bins = (hashes >> np.uint64(64 - BIN_BITS)).view(np.int64)
    bins += owners << BIN_BITS
    np.minimum.at(table, bins, hashes)
    return _dense(table).reshape(num_documents, NUM_BINS)


def _dense(table: Hashes) -> Hashes:
    """Fill every empty bin from another of its row, which bins are tried in an order that is the bin's own."""
    filled = table.copy()
    gaps = np.flatnonzero(table == EMPTY)
    rows = gaps >> BIN_BITS
    gaps = gaps[(np.bincount(rows) < NUM_BINS)[rows]]
    bins = gaps & (NUM_BINS - 1)
    tried = table[gaps - bins + PROBES[:, bins]]
    filled[gaps] = tried[(tried != EMPTY).argmax(axis=0), np.arange(len(gaps))]
    gaps = gaps[filled[gaps] == EMPTY]
    borders = np.flatnonzero(np.diff(gaps >> BIN_BITS))
    for open_bins in np.split(gaps, borders + 1) if len(gaps) else ():  # of few shingles: try all its full bins
        start = open_bins[0] & -NUM_BINS
        full = np.flatnonzero(table[start : start + NUM_BINS] != EMPTY)
        ranks = RANKS[(open_bins - start)[:, None], full]
        filled[open_bins] = table[start + full[ranks.argmin(axis=1)]]
    return filled


def band_keys(texts: Texts, settings: NearDedupSettings) -> Hashes:
    """(len(texts), num_bands): documents with an equal key in a column are candidates. 0: the document is too short."""
    found = [_band_keys(chunk, settings) for chunk in chunks(texts)]
    return np.concatenate([np.empty((0, settings.num_bands), np.uint64), *found])


def _band_keys(chunk: Sequence[bytes], settings: NearDedupSettings) -> Hashes:
    table = signatures(*shingles_of_chunk(chunk, settings.shingle_words, settings.min_words), len(chunk))
    width, bands = settings.rows_per_band, settings.num_bands
    values = table[:, : bands * width].reshape(len(chunk), bands, width)
    keys: Hashes = mix((values * odd_numbers(4, bands, width)).sum(axis=2, dtype=np.uint64)) | np.uint64(1)
    keys[(table == EMPTY).all(axis=1)] = 0
    return keys


def components(keys: Hashes) -> list[Indices]:
    """Groups of documents that candidates connect, each of two or more, ascending: what can be decided on its own."""
    parents = np.arange(len(keys))
    for column in keys.T:
        join(parents, *links(column))
    return groups(parents)


def links(keys: Hashes) -> tuple[Indices, Indices]:
    """Pairs of places where equal keys stand, enough to connect all that are equal; 0 is equal to nothing."""
    order = np.argsort(keys)
    ordered = keys[order]
    equal = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
    return order[:-1][equal], order[1:][equal]


def join(parents: Indices, left: Indices, right: Indices) -> None:
    """Connect pairs of documents in a forest in which a root, its own parent, is the smallest document of its group.

    What comes of it does not depend on the order of pairs, nor on that of calls.
    """
    while True:
        left, right = _roots(parents, left), _roots(parents, right)
        differ = left != right
        if not differ.any():
            return
        left, right = left[differ], right[differ]
        higher = np.maximum(left, right)
        np.minimum.at(parents, higher, np.minimum(left, right))
        _shorten(parents, higher)


def _roots(parents: Indices, documents: Indices) -> Indices:
    _shorten(parents, documents)
    return parents[documents]


def _shorten(parents: Indices, documents: Indices) -> None:
    """Make the root of each of these its parent: every round halves the paths among them."""
    while True:
        above = parents[documents]
        top = parents[above]
        if (top == above).all():
            return
        parents[documents] = top


def groups(parents: Indices) -> list[Indices]:
    """The groups of two or more in such a forest, in the order of their smallest documents."""
    members = np.flatnonzero(parents != np.arange(len(parents)))
    if not len(members):
        return []
    labels = _roots(parents, members)
    roots = np.unique(labels)
    members, labels = np.concatenate([roots, members]), np.concatenate([roots, labels])
    order = np.lexsort((members, labels))
    return np.split(members[order], np.flatnonzero(np.diff(labels[order])) + 1)


def near_duplicates(
    documents: Iterable[int],
    keys: Hashes,
    shingles_of: Callable[[int], Hashes],
    settings: NearDedupSettings,
    stays: Collection[int] = (),
) -> tuple[list[Removal], int]:
    """(which of the documents go, how many were not compared with all that share a band with them).

    The order of `documents` is that of preference; `keys[i]` are those of document i, `shingles_of(i)` its sorted,
    distinct shingles. Those in `stays` are kept, whatever they are near to.
    """
    kept_in: dict[tuple[int, int], list[int]] = {}
    crowded: set[tuple[int, int]] = set()
    kept: list[int] = []
    sets: dict[int, Hashes] = {}
    removed, num_crowded = [], 0
    for index in documents:
        places = [(band, int(key)) for band, key in enumerate(keys[index]) if key]
        compared = () if index in stays else places
        shared: Counter[int] = Counter()
        for alike in (kept_in.get(place, []) for place in compared):
            shared.update(dict.fromkeys(alike, settings.max_rivals // max(1, len(alike))))
        rivals = heapq.nsmallest(settings.max_rivals, shared, key=lambda rank: (-shared[rank], rank))
        num_crowded += len(rivals) < len(shared) or not crowded.isdisjoint(compared)
        own = shingles_of(index)
        # The smaller set is at most all that both have in common.
        close = [rank for rank in rivals if _ratio(len(own), len(sets[rank])) >= settings.threshold]
        best, rank = max(((jaccard(own, sets[rank]), -rank) for rank in close), default=(0.0, 0))
        if close and best >= settings.threshold:
            removed.append(Removal(index, kept[-rank], best))
            continue
        room = [place for place in places if len(kept_in.setdefault(place, [])) < settings.max_rivals]
        crowded.update(place for place in places if len(kept_in[place]) >= settings.max_rivals)
        for place in room:
            kept_in[place].append(len(kept))
        if room:
            sets[len(kept)] = own
        kept.append(index)
    return removed, num_crowded


def _ratio(first: int, second: int) -> float:
    return min(first, second) / max(first, second, 1)


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A and B| / |A or B| of two sorted arrays of distinct hashes; 0 if both are empty."""
    total = len(first) + len(second)
    both = np.concatenate([first, second])
    both.sort()
    common = int(np.count_nonzero(both[1:] == both[:-1]))
    return common / (total - common) if total else 0.0
