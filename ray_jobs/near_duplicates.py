"""Near duplicates of a whole corpus: groups of candidates are compared side by side, each by one task of Ray.

The driver holds the band keys of all documents, 200 bytes each by default; the tasks that compare texts read them.
Those of earlier corpora come from their index (`ray_jobs.near_index`) and are not signed again.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from codeparrot.documents import document_id, from_parquet, origin_of, to_parquet
from codeparrot.near_dedup import NearDedupSettings, Removal, components, near_duplicates
from codeparrot.redact import redact_table
from codeparrot.shingles import Hashes, Indices, distinct, shingles
from codeparrot.storage import open_storage
from ray_jobs.cluster import spread
from ray_jobs.near_index import Corpus, Places, Shard, places_of

logger = logging.getLogger(__name__)

BATCH_DOCUMENTS = 1000
MAX_BATCHES = 64
"""Each reads the shards that its documents lie in, which may be all."""
GIANT_GROUP = 2000
"""Documents in one group from which a person should look at them: one task holds their texts, and compares each with
all that it keeps of the group."""
SHOWN_SIMILARITIES = (0.7, 0.8, 0.85, 0.9, 0.95)


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
    keys: list[Hashes]
    """For each group, (len(group), num_bands)."""


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
    places: Places,
    preference: Indices,
    ids: Sequence[str],
    *,
    corpus: Corpus,
    against: Sequence[Corpus],
    settings: NearDedupSettings,
) -> tuple[list[Near], dict[str, Any]]:
    """Which documents go, and counts for the manifest.

    Of near duplicates, one of an earlier corpus (`against`) stays, else the one with the smallest `preference[i]`.
    `ids[i]` is the id of the document at `places.rows[i]`.
    """
    shown = sorted({*SHOWN_SIMILARITIES, settings.threshold})
    curve = "  ".join(f"{100 * settings.catch_probability(similarity):.1f} % at {similarity}" for similarity in shown)
    logger.info("curate: near     pairs that are compared, by similarity: %s", curve)
    corpora = [corpus, *against]
    both = Joined(places, places_of(against, settings.num_bands))
    groups = [
        sorted(group.tolist(), key=lambda index: (1, preference[index]) if index < len(ids) else (0, (index,)))
        for group in components(both.keys)
        if group[0] < len(ids)
    ]
    largest = max(map(len, groups), default=0)
    if largest > GIANT_GROUP:
        logger.warning(
            "curate: near     a group of %s documents may be near duplicates of each other, for example %s; if they "
            "are not, this takes long: filter what they share, or raise curate.near_dedup.rows_per_band",
            f"{largest:,}",
            " and ".join(
                "/".join(origin_of(ids[index]).values()) for index in _own(max(groups, key=len), len(ids))[:2]
            ),
        )
    compare = partial(_compare, corpora=corpora, settings=settings)
    found = spread("curate: near", _batches(groups, both), compare, "batches")
    removals = sorted((removal for part in found for removal in part), key=lambda removal: removal.index)
    others = _origins([both.candidate(removal.kept) for removal in removals if removal.kept >= len(ids)], corpora)
    near = []
    for removal in removals:
        kept, where = (ids[removal.kept], None) if removal.kept < len(ids) else others[removal.kept]
        near.append(Near(removal.index, kept, where, removal.similarity))
    return near, {
        "keys_are_of": settings.keys_are_of,
        "num_groups": len(groups),
        "num_compared": sum(map(len, groups)),
        "largest_group": largest,
        "num_compared_with": len(both.keys) - len(ids),
    }


def _own(group: Sequence[int], num_own: int) -> list[int]:
    return [index for index in group if index < num_own]


class Joined:
    """The documents of this corpus, then those of earlier ones."""

    def __init__(self, own: Places, others: Places) -> None:
        self.keys: Hashes = np.concatenate([own.keys, others.keys])
        self._own, self._others = own, others

    def candidate(self, index: int) -> Candidate:
        """The document with this index."""
        num_own = len(self._own.rows)
        places, place = (self._own, index) if index < num_own else (self._others, index - num_own)
        shard = places.shards[int(places.owners[place])]
        return Candidate(index, shard, int(places.rows[place]), stays=index >= num_own)


def _batches(groups: Sequence[list[int]], joined: Joined) -> list[Batch]:
    batches: list[Batch] = []
    size, room = max(BATCH_DOCUMENTS, sum(map(len, groups)) // MAX_BATCHES), 0
    for group in groups:
        if room < len(group):
            batches.append(Batch([], []))
            room = size
        batches[-1].groups.append([joined.candidate(index) for index in group])
        batches[-1].keys.append(joined.keys[group])
        room -= len(group)
    return batches


def _compare(batch: Batch, *, corpora: Sequence[Corpus], settings: NearDedupSettings) -> list[Removal]:
    candidates = [candidate for group in batch.groups for candidate in group]
    texts = {
        candidate.index: str(row["content"]) for candidate, row in _rows(candidates, corpora, ("content",), redact=True)
    }
    removals = []
    for group, keys in zip(batch.groups, batch.keys, strict=True):
        sets = distinct(
            *shingles([texts[candidate.index] for candidate in group], settings.shingle_words, settings.min_words),
            len(group),
        )
        stays = {place for place, candidate in enumerate(group) if candidate.stays}
        for removal in near_duplicates(range(len(group)), keys, sets.__getitem__, settings.threshold, stays):
            index, kept = group[removal.index].index, group[removal.kept].index
            removals.append(Removal(index, kept, removal.similarity))
    return removals


def _origins(candidates: Sequence[Candidate], corpora: Sequence[Corpus]) -> dict[int, tuple[str, str]]:
    """The ids of documents of earlier corpora, and where those are."""
    return {
        candidate.index: (document_id(**row), corpora[candidate.shard.corpus].uri)
        for candidate, row in _rows(candidates, corpora, ("source", "repository", "path"))
    }


def _rows(
    candidates: Sequence[Candidate], corpora: Sequence[Corpus], columns: Sequence[str], *, redact: bool = False
) -> Iterator[tuple[Candidate, dict[str, Any]]]:
    """Every candidate with these columns of it, a shard at a time."""
    wanted: dict[Shard, list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        wanted[candidate.shard].append(candidate)
    for shard, here in wanted.items():
        corpus = corpora[shard.corpus]
        table = from_parquet(corpus.manifest.read(open_storage(corpus.uri), shard.name), columns)
        table = table.take(np.array([candidate.row for candidate in here]))
        yield from zip(here, redact_table(table, corpus.redact if redact else None)[0].to_pylist(), strict=True)


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
