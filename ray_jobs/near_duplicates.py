"""Near duplicates of a whole corpus: tasks of Ray find what is connected, and compare what is, group by group.

The band keys of documents, 200 bytes each by default, are in the store (`ray_jobs.near_index`) and never in the memory
of the driver. A task reads those of some bands, or of a range of the keys of one, and writes which documents have
equal ones; the driver joins that, part by part, into a forest: 8 bytes for each document, and while it looks for the
groups 8 more, and some 200 for each of the documents that are in one. Other tasks read the texts of groups and compare
them. What earlier corpora kept is not signed again.
"""

import logging
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np

from codeparrot.documents import document_id, from_parquet, origin_of, to_parquet
from codeparrot.near_dedup import NearDedupSettings, Removal, groups, join, links, near_duplicates
from codeparrot.shingles import Hashes, Indices, distinct, shingles
from codeparrot.storage import Storage, open_storage
from ray_jobs.cluster import spread
from ray_jobs.kept import Kept
from ray_jobs.near_index import Corpus, Shard, shards_of

logger = logging.getLogger(__name__)

PART_KEYS = 16_000_000
"""Keys in which one task looks for equal ones: some 600 MB of its memory."""
BATCH_DOCUMENTS = 1000
NUM_BATCHES = 64
"""What is aimed at, for each reads the shards that its documents lie in, which may be all."""
GIANT_GROUP = 2000
"""Documents in one group from which a person should look at them."""
MAX_GROUP = 50_000
"""Documents of a group that are compared with each other: one task holds their texts."""
SHOWN_SIMILARITIES = (0.7, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True)
class Part:
    """Keys that one task looks at."""

    number: int
    bands: range
    range: int
    """Of the ranges into which the keys of a band are divided."""
    num_ranges: int


@dataclass(frozen=True)
class Candidate:
    """A document that may be a near duplicate, or have one."""

    index: int
    shard: Shard
    row: int
    """Its place in the shard."""
    stays: bool
    """It belongs to an earlier corpus."""


@dataclass(frozen=True)
class Batch:
    """Groups of candidates for one task, each in the order of preference."""

    groups: list[list[Candidate]]


@dataclass(frozen=True)
class Near:
    """One near duplicate that goes: document `index` of those that were given."""

    index: int
    kept: str
    """The id of the document that stands for it."""
    kept_in: str | None
    """The store whose curated corpus it is in; None: this one."""
    similarity: float


def find(
    shards: Sequence[Shard],
    candidates: Indices,
    preference: Indices,
    ids: Sequence[str],
    *,
    corpus: Corpus,
    against: Sequence[Corpus],
    settings: NearDedupSettings,
    folder: str,
    results: Kept | None = None,
) -> tuple[list[Near], dict[str, Any]]:
    """Which of the `candidates` go, and counts for the manifest. Documents are numbered in the order of `shards`.

    Of near duplicates, one of an earlier corpus (`against`) stays, else the one with the smallest `preference[i]`.
    `ids[i]` is the id of document i. Nothing that is written to `folder`, in the store of `corpus`, is needed later;
    what tasks tell is kept in `results`.
    """
    shown = sorted({*SHOWN_SIMILARITIES, settings.threshold})
    curve = "  ".join(f"{100 * settings.catch_probability(similarity):.1f} % at {similarity}" for similarity in shown)
    logger.info("curate: near     pairs that are compared, by similarity: %s", curve)
    corpora = [corpus, *against]
    everything = Documents([*shards, *shards_of(against, settings.num_bands)])
    takes_part = np.ones(everything.num_documents, np.bool_)
    takes_part[: len(ids)] = False
    takes_part[candidates] = True
    found = []
    for group in groups(_forest(everything, corpora, settings, folder, results)):
        members = group[takes_part[group]].tolist()
        if len(members) > 1 and members[0] < len(ids):
            found.append(sorted(members, key=lambda i: (1, preference[i]) if i < len(ids) else (0, i)))
    _warn_of_giants(found, ids)
    compare = partial(_compare, corpora=corpora, settings=settings)
    compared = spread("curate: near", _batches(found, everything, len(ids)), compare, "batches", kept=results)
    num_crowded = sum(number for _, number in compared)
    if num_crowded:
        logger.warning(
            "curate: near     %s documents share bands with so many that are kept that each was compared with at most "
            "%d of those; raise curate.near_dedup.max_rivals, or filter what they share",
            f"{num_crowded:,}",
            settings.max_rivals,
        )
    removals = sorted((removal for part, _ in compared for removal in part), key=lambda removal: removal.index)
    earlier = [removal.kept for removal in removals if removal.kept >= len(ids)]
    others = _origins([everything.candidate(index, stays=True) for index in earlier], corpora)
    near = []
    for removal in removals:
        kept, where = (ids[removal.kept], None) if removal.kept < len(ids) else others[removal.kept]
        near.append(Near(removal.index, kept, where, removal.similarity))
    return near, {
        "keys_are_of": settings.keys_are_of,
        "num_groups": len(found),
        "num_compared": sum(map(len, found)),
        "largest_group": max(map(len, found), default=0),
        "num_crowded": num_crowded,
        "num_compared_with": everything.num_documents - len(ids),
    }


def _warn_of_giants(found: Sequence[list[int]], ids: Sequence[str]) -> None:
    largest = max(found, key=len, default=[])
    if len(largest) > GIANT_GROUP:
        own = [index for index in largest if index < len(ids)]
        parts = f" (in parts of {MAX_GROUP:,})" if len(largest) > MAX_GROUP else ""
        logger.warning(
            "curate: near     a group of %s documents may be near duplicates of each other, for example %s; if they "
            "are not, comparing them%s takes long: filter what they share, or raise curate.near_dedup.rows_per_band",
            f"{len(largest):,}",
            " and ".join("/".join(origin_of(ids[index]).values()) for index in own[:2]),
            parts,
        )


class Documents:
    """The documents of all shards, numbered."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.starts = [0, *accumulate(shard.num_documents for shard in shards)]
        self.num_documents = self.starts[-1]

    def candidate(self, index: int, *, stays: bool) -> Candidate:
        """The document with this number."""
        place = bisect_right(self.starts, index) - 1
        return Candidate(index, self.shards[place], index - self.starts[place], stays)


def _forest(
    documents: Documents, corpora: Sequence[Corpus], settings: NearDedupSettings, folder: str, results: Kept | None
) -> Indices:
    """The documents that equal keys connect, as `codeparrot.near_dedup.join` makes it."""
    parents = np.arange(documents.num_documents)
    parts = _parts(documents.num_documents, settings.num_bands)
    link = partial(_link, documents=documents, uris=[corpus.uri for corpus in corpora], folder=folder)
    spread("curate: link", parts, link, "parts", kept=results)
    storage = open_storage(corpora[0].uri)
    for part in parts:
        join(parents, *np.frombuffer(storage.read(_links_path(folder, part)), "<i8").reshape(2, -1))
    return parents


def _parts(num_documents: int, num_bands: int) -> list[Part]:
    num_ranges = 1 + num_documents // PART_KEYS
    at_once = max(1, PART_KEYS // max(1, num_documents))
    spans = [range(start, min(start + at_once, num_bands)) for start in range(0, num_bands, at_once)]
    places = [(span, number) for span in spans for number in range(num_ranges)]
    return [Part(index, span, number, num_ranges) for index, (span, number) in enumerate(places)]


def _links_path(folder: str, part: Part) -> str:
    return f"{folder}/links/{part.number:05d}"


def _link(part: Part, *, documents: Documents, uris: Sequence[str], folder: str) -> None:
    """Write which documents have equal keys, as two rows of their numbers."""
    storages = [open_storage(uri) for uri in uris]
    found = [_links(part, band, documents, storages) for band in part.bands]
    storages[0].write(_links_path(folder, part), np.concatenate(found, axis=1).astype("<i8").tobytes())


def _links(part: Part, band: int, documents: Documents, storages: Sequence[Storage]) -> Indices:
    keys, indices = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for start, shard in zip(documents.starts, documents.shards, strict=False):
        own = shard.band(storages[shard.corpus], band)
        ranges = (own >> np.uint64(32)) * np.uint64(part.num_ranges) >> np.uint64(32)
        here = np.flatnonzero((own != 0) & (ranges == part.range))
        keys.append(own[here])
        indices.append(here + start)
    all_indices = np.concatenate(indices)
    return all_indices[np.stack(links(np.concatenate(keys)))]


def _batches(found: Sequence[list[int]], documents: Documents, num_own: int) -> list[Batch]:
    batches: list[Batch] = []
    size, room = min(MAX_GROUP, max(BATCH_DOCUMENTS, sum(map(len, found)) // NUM_BATCHES)), 0
    parts = (group[start : start + MAX_GROUP] for group in found for start in range(0, len(group), MAX_GROUP))
    for group in parts:
        if room < len(group):
            batches.append(Batch([]))
            room = size
        batches[-1].groups.append([documents.candidate(index, stays=index >= num_own) for index in group])
        room -= len(group)
    return batches


def _compare(batch: Batch, *, corpora: Sequence[Corpus], settings: NearDedupSettings) -> tuple[list[Removal], int]:
    """(which of them go, how many were not compared with all that share a band with them)."""
    candidates = [candidate for group in batch.groups for candidate in group]
    texts = {candidate.index: str(row["content"]) for candidate, row in _rows(candidates, corpora, ("content",))}
    all_keys = _keys(candidates, corpora)
    removals, num_crowded = [], 0
    for group in batch.groups:
        sets = distinct(
            *shingles([texts[candidate.index] for candidate in group], settings.shingle_words, settings.min_words),
            len(group),
        )
        keys = np.stack([all_keys[candidate.index] for candidate in group])
        stays = {place for place, candidate in enumerate(group) if candidate.stays}
        found, crowded = near_duplicates(range(len(group)), keys, sets.__getitem__, settings, stays)
        removals += [
            Removal(group[removal.index].index, group[removal.kept].index, removal.similarity) for removal in found
        ]
        num_crowded += crowded
    return removals, num_crowded


def _origins(candidates: Sequence[Candidate], corpora: Sequence[Corpus]) -> dict[int, tuple[str, str]]:
    """The ids of documents of earlier corpora, and where those are."""
    return {
        candidate.index: (document_id(**row), corpora[candidate.shard.corpus].uri)
        for candidate, row in _rows(candidates, corpora, ("source", "repository", "path"))
    }


def _rows(
    candidates: Sequence[Candidate], corpora: Sequence[Corpus], columns: Sequence[str]
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Every candidate with these columns of it, a shard at a time."""
    for shard, here in _by_shard(candidates).items():
        corpus = corpora[shard.corpus]
        table = from_parquet(corpus.manifest.read(open_storage(corpus.uri), shard.name), columns)
        table = table.take(np.array([candidate.row for candidate in here]))
        yield from zip(here, table.to_pylist(), strict=True)


def _keys(candidates: Sequence[Candidate], corpora: Sequence[Corpus]) -> dict[int, Hashes]:
    """The keys of every candidate."""
    found: dict[int, Hashes] = {}
    for shard, here in _by_shard(candidates).items():
        keys = shard.all_bands(open_storage(corpora[shard.corpus].uri))[[candidate.row for candidate in here]]
        found.update(zip((candidate.index for candidate in here), keys, strict=True))
    return found


def _by_shard(candidates: Sequence[Candidate]) -> dict[Shard, list[Candidate]]:
    found: dict[Shard, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        found[candidate.shard].append(candidate)
    return found


def audit(removals: Sequence[Near], documents: Sequence[str]) -> bytes:
    """A row for every document that goes, as Parquet: what it is, what stays for it and where, how similar they are.

    `documents` are the ids (source, repository and path, joined by NUL) of all documents, by index.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = defaultdict(list)
    for removal in removals:
        for which, document in (("removed", documents[removal.index]), ("kept", removal.kept)):
            for name, value in origin_of(document).items():
                columns[f"{which}_{name}"].append(value)
        columns["kept_in"].append(removal.kept_in)
        columns["jaccard"].append(removal.similarity)
    fields = [
        pa.field(f"{which}_{name}", pa.string())
        for which in ("removed", "kept")
        for name in ("source", "repository", "path")
    ]
    schema = pa.schema([*fields, pa.field("kept_in", pa.string()), pa.field("jaccard", pa.float64())])
    return to_parquet(pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema))
