"""Near duplicates of a whole corpus: groups of candidates are compared side by side, each by one task of Ray.

The driver holds the band keys of all documents, 200 bytes each by default; the tasks that compare texts read them.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from codeparrot.documents import from_parquet, origin_of, to_parquet
from codeparrot.manifest import Manifest
from codeparrot.near_dedup import NearDedupSettings, Removal, components, near_duplicates
from codeparrot.redact import RedactSettings, redact_table
from codeparrot.shingles import Hashes, distinct, shingles
from codeparrot.storage import open_storage
from ray_jobs.cluster import spread

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
    shard: str
    row: int
    """Its place in the shard."""


@dataclass(frozen=True)
class Batch:
    """Groups of candidates for one task, each in the order of preference."""

    groups: list[list[Candidate]]
    keys: list[Hashes]
    """For each group, (len(group), num_bands)."""


def find(
    places: Sequence[tuple[str, int]],
    keys: Hashes,
    preference: Sequence[tuple[Any, ...]],
    ids: Sequence[str],
    *,
    uri: str,
    raw: Manifest,
    settings: NearDedupSettings,
    redact: RedactSettings | None,
) -> tuple[list[Removal], dict[str, Any]]:
    """Which documents go, and counts for the manifest.

    Of document i, `places[i]` is its shard and its row there, `keys[i]` are its bands, and of near duplicates the one
    with the smallest `preference[i]` stays. `ids[i]` is its id.
    """
    shown = sorted({*SHOWN_SIMILARITIES, settings.threshold})
    curve = "  ".join(f"{100 * settings.catch_probability(similarity):.1f} % at {similarity}" for similarity in shown)
    logger.info("curate: near     pairs that are compared, by similarity: %s", curve)
    groups = [sorted(group.tolist(), key=lambda index: preference[index]) for group in components(keys)]
    largest = max(map(len, groups), default=0)
    if largest > GIANT_GROUP:
        logger.warning(
            "curate: near     a group of %s documents may be near duplicates of each other, for example %s; if they "
            "are not, this takes long: filter what they share, or raise curate.near_dedup.rows_per_band",
            f"{largest:,}",
            " and ".join("/".join(origin_of(ids[index]).values()) for index in max(groups, key=len)[:2]),
        )
    compare = partial(_compare, uri=uri, raw=raw, settings=settings, redact=redact)
    found = spread("curate: near", _batches(groups, places, keys), compare, "batches")
    removals = sorted((removal for part in found for removal in part), key=lambda removal: removal.index)
    return removals, {"num_groups": len(groups), "num_compared": sum(map(len, groups)), "largest_group": largest}


def _batches(groups: Sequence[list[int]], places: Sequence[tuple[str, int]], keys: Hashes) -> list[Batch]:
    batches: list[Batch] = []
    size, room = max(BATCH_DOCUMENTS, sum(map(len, groups)) // MAX_BATCHES), 0
    for group in groups:
        if room < len(group):
            batches.append(Batch([], []))
            room = size
        batches[-1].groups.append([Candidate(index, *places[index]) for index in group])
        batches[-1].keys.append(keys[group])
        room -= len(group)
    return batches


def _compare(
    batch: Batch, *, uri: str, raw: Manifest, settings: NearDedupSettings, redact: RedactSettings | None
) -> list[Removal]:
    texts = _texts(batch, uri, raw, redact)
    removals = []
    for group, keys in zip(batch.groups, batch.keys, strict=True):
        sets = distinct(
            *shingles([texts[candidate.index] for candidate in group], settings.shingle_words, settings.min_words),
            len(group),
        )
        for removal in near_duplicates(range(len(group)), keys, sets.__getitem__, settings.threshold):
            index, kept = group[removal.index].index, group[removal.kept].index
            removals.append(Removal(index, kept, removal.similarity))
    return removals


def _texts(batch: Batch, uri: str, raw: Manifest, redact: RedactSettings | None) -> dict[int, str]:
    wanted = defaultdict(list)
    for group in batch.groups:
        for candidate in group:
            wanted[candidate.shard].append(candidate)
    storage, texts = open_storage(uri), {}
    for shard, candidates in wanted.items():
        table = from_parquet(raw.read(storage, shard), ["content"])
        taken, _ = redact_table(table.take(np.array([candidate.row for candidate in candidates])), redact)
        contents = taken["content"].to_pylist()
        texts.update({candidate.index: text for candidate, text in zip(candidates, contents, strict=True)})
    return texts


def audit(removals: Sequence[Removal], documents: Sequence[str]) -> bytes:
    """A row for every document that goes, as Parquet: what it is, what stays for it, how similar they are.

    `documents` are the ids (source, repository and path, joined by NUL) of all documents, by index.
    """
    import pyarrow as pa

    columns: dict[str, list[Any]] = defaultdict(list)
    for removal in removals:
        for which, index in (("removed", removal.index), ("kept", removal.kept)):
            for name, value in origin_of(documents[index]).items():
                columns[f"{which}_{name}"].append(value)
        columns["jaccard"].append(removal.similarity)
    fields = [
        pa.field(f"{which}_{name}", pa.string())
        for which in ("removed", "kept")
        for name in ("source", "repository", "path")
    ]
    schema = pa.schema([*fields, pa.field("jaccard", pa.float64())])
    return to_parquet(pa.Table.from_pydict({name: columns[name] for name in schema.names}, schema))
