"""Near duplicates: MinHash nominates, the exact Jaccard similarity decides, and every removal can be justified.

A document is the set of its shingles: `shingle_words` consecutive words, as 64-bit hashes. Documents that share a band
of their MinHash signatures are candidates. In the order of preference, each candidate is compared with those that were
kept before it: it goes if its similarity to one of them reaches the threshold, and is kept otherwise. So whatever goes
has a kept document that is as similar as was asked for (in a chain A~B~C whose ends differ, B goes and C stays), the
result does not depend on the order in which documents come, and a thousand copies cost a thousand comparisons.

Signatures: one-permutation hashing (Li, Owen, Zhang 2012) with optimal densification (Shrivastava 2017): one hash per
shingle instead of one per shingle and permutation, with the same expectation. Bands: Leskovec, Rajaraman, Ullman,
"Mining of Massive Datasets", 3.4.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from codeparrot.settings import Settings
from codeparrot.shingles import Hashes, Indices, mix, odd_numbers, shingles

SLICE_DOCUMENTS = 256
"""Documents that are signed at once: so few that the arrays stay in a cache of the processor."""
MIN_CATCH_PROBABILITY = 0.9
NUM_BINS = 256
BIN_BITS = 8
VALUE_BITS = 32
MAX_DOCUMENTS = 1 << (64 - BIN_BITS - VALUE_BITS)
NUM_PROBES = 64
EMPTY = np.uint64(1 << VALUE_BITS)
"""No value of a bin: those have 32 bits."""


KEYS_VERSION = 1
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
    """Documents that agree in one band are compared. Each costs 8 bytes of memory per document."""
    rows_per_band: PositiveInt = 10
    """Values of the signature per band. More: fewer comparisons, and more near duplicates that are missed."""
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
    """(num_documents, 256) values of 32 bits, the smallest hash of each bin. Documents without shingles: all EMPTY."""
    assert num_documents <= MAX_DOCUMENTS, "sign them in slices"
    table = np.full(num_documents * NUM_BINS, EMPTY, np.uint64)
    ordered = np.sort((owners.astype(np.uint64) << np.uint64(VALUE_BITS + BIN_BITS)) | (hashes >> np.uint64(24)))
    bins = ordered >> np.uint64(VALUE_BITS)
    first = np.ones(len(bins), np.bool_)
    first[1:] = bins[1:] != bins[:-1]
    table[bins[first].astype(np.int64)] = ordered[first] & np.uint64(2**VALUE_BITS - 1)
    return _dense(table.reshape(num_documents, NUM_BINS))


def _dense(table: Hashes) -> Hashes:
    """Fill every empty bin from another, which bins are tried in an order that is the bin's own."""
    filled = table.copy()
    open_rows = np.flatnonzero((table == EMPTY).any(axis=1) & (table != EMPTY).any(axis=1))
    for sources in odd_numbers(3, NUM_PROBES, NUM_BINS) >> np.uint64(64 - BIN_BITS):
        if not len(open_rows):
            return filled
        part = filled[open_rows]
        part = np.where(part == EMPTY, table[open_rows][:, sources.astype(np.int64)], part)
        filled[open_rows] = part
        open_rows = open_rows[(part == EMPTY).any(axis=1)]
    for row in open_rows:  # a document of very few shingles that no probe has met
        values = table[row][table[row] != EMPTY]
        gaps = np.flatnonzero(filled[row] == EMPTY)
        filled[row, gaps] = values[gaps % len(values)]
    return filled


def band_keys(texts: Sequence[str], settings: NearDedupSettings) -> Hashes:
    """(len(texts), num_bands): documents with an equal key in a column are candidates. 0: the document is too short."""
    slices = [
        _band_keys(texts[start : start + SLICE_DOCUMENTS], settings) for start in range(0, len(texts), SLICE_DOCUMENTS)
    ]
    return np.concatenate([np.empty((0, settings.num_bands), np.uint64), *slices])


def _band_keys(texts: Sequence[str], settings: NearDedupSettings) -> Hashes:
    table = signatures(*shingles(texts, settings.shingle_words, settings.min_words), len(texts))
    width, bands = settings.rows_per_band, settings.num_bands
    values = table[:, : bands * width].reshape(len(texts), bands, width)
    keys: Hashes = mix((values * odd_numbers(4, bands, width)).sum(axis=2, dtype=np.uint64)) | np.uint64(1)
    keys[(table == EMPTY).all(axis=1)] = 0
    return keys


def components(keys: Hashes) -> list[Indices]:
    """Groups of documents that candidates connect, each of two or more, ascending: what can be decided on its own."""
    labels = np.arange(len(keys))
    for column in keys.T:
        order = np.argsort(column, kind="stable")
        equal = (column[order[1:]] == column[order[:-1]]) & (column[order[1:]] != 0)
        labels = _join(labels, order[:-1][equal], order[1:][equal])
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return [group for group in np.split(order, starts[1:]) if len(group) > 1] if len(order) else []


def _join(labels: Indices, left: Indices, right: Indices) -> Indices:
    """Labels after these pairs are joined: in every group that of its smallest member."""
    while True:
        a, b = labels[left], labels[right]
        differ = a != b
        if not differ.any():
            return labels
        left, right, a, b = left[differ], right[differ], a[differ], b[differ]
        parents = np.arange(len(labels))
        np.minimum.at(parents, np.maximum(a, b), np.minimum(a, b))
        while True:
            grand = parents[parents]
            if (grand == parents).all():
                break
            parents = grand
        labels = parents[labels]


def near_duplicates(
    documents: Iterable[int],
    keys: Hashes,
    shingles_of: Callable[[int], Hashes],
    threshold: float,
    stays: Collection[int] = (),
) -> list[Removal]:
    """Which of the documents go. The order of `documents` is that of preference; `keys[i]` are those of document i.

    `shingles_of(i)` gives the sorted, distinct shingles of document i. Those in `stays` are kept, whatever they are
    near to.
    """
    kept_in: dict[tuple[int, int], list[int]] = {}
    sets: dict[int, Hashes] = {}
    removed = []
    for index in documents:
        places = [(band, int(key)) for band, key in enumerate(keys[index]) if key]
        compared = () if index in stays else places
        rivals = sorted({kept for place in compared for kept in kept_in.get(place, ())})
        own = shingles_of(index)
        # The smaller set is at most all that both have in common.
        close = [rival for rival in rivals if _ratio(len(own), len(sets[rival])) >= threshold]
        best = max(((jaccard(own, sets[rival]), -rival) for rival in close), default=(0.0, 0))
        if close and best[0] >= threshold:
            removed.append(Removal(index, -best[1], best[0]))
        else:
            sets[index] = own
            for place in places:
                kept_in.setdefault(place, []).append(index)
    return removed


def _ratio(first: int, second: int) -> float:
    return min(first, second) / max(first, second, 1)


def jaccard(first: Hashes, second: Hashes) -> float:
    """|A and B| / |A or B| of two sorted arrays of distinct hashes; 0 if both are empty."""
    total = len(first) + len(second)
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (total - common) if total else 0.0
