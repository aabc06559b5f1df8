"""One shard in the two passes of curation: judged, document by document, and written to its splits.

What the tasks of `ray_jobs.curate` run, and what they tell the driver.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any, TypeVar

import numpy as np

from codeparrot.decontaminate import Problems
from codeparrot.dedup import content_key
from codeparrot.documents import Document, document_id, from_parquet, to_parquet
from codeparrot.draws import uniform
from codeparrot.filters import reject, reject_license
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.near_dedup import band_keys
from codeparrot.redact import RedactSettings, redact, redact_table
from codeparrot.splits import SPLITS, CurateSettings
from codeparrot.storage import open_storage
from codeparrot.tokenizer import gpt2_encoder
from ray_jobs.near_index import KEYS, from_index, index_of, to_index
from ray_jobs.tally import Redacted, Tally

T = TypeVar("T")

EXCERPT_CHARACTERS = 2000
CONTAMINATED = "contaminated"
ORIGIN = ("source", "repository", "revision", "license")
"""Whom a document is owed to: a line of the attribution list for each."""


@dataclass(frozen=True)
class Verdict:
    """What the first pass says of one document."""

    repository: str
    document: str
    """Its id."""
    reason: str | None
    preference: tuple[Any, ...]
    """Of duplicates the smallest stays: known licence first, then by id."""
    key: bytes
    contamination: dict[str, int]
    """How many runs of words it shares with which problems of benchmarks."""


@dataclass(frozen=True)
class Placement:
    """What the second pass does with one shard: a reason to reject, or a split, for every document."""

    name: str
    index: int
    reasons: list[str | None]
    splits: list[str]


Sample = tuple[float, dict[str, Any]]
"""(what decides which are shown, what to show of a document)"""


def judge_shard(
    name: str,
    *,
    uri: str,
    folder: str,
    raw: Manifest,
    settings: CurateSettings,
    seed: int,
    problems: Problems | None,
) -> list[Verdict]:
    """The first pass over one shard: every document on its own. Keys for near duplicates go to the attempt's folder."""
    storage = open_storage(uri)
    table, _ = redact_table(from_parquet(raw.read(storage, name)), settings.redact)
    documents = [Document(**row) for row in table.to_pylist()]
    languages = {document.language for document in documents}
    needed = any(settings.filters.of(language).min_characters_per_token is not None for language in languages)
    lengths: Any = gpt2_encoder().encode([document.content for document in documents])[1] if needed else []
    reasons = [
        reject_license(document, settings.licenses)
        or reject(document, settings.filters, seed=seed, num_tokens=partial(_length, lengths, index))
        for index, document in enumerate(documents)
    ]
    contamination: list[dict[str, int]] = [{} for _ in documents]
    if problems is not None:
        passed = passing(reasons)
        for index, shared in zip(passed, problems.shared([documents[i].content for i in passed]), strict=True):
            contamination[index] = shared
            reasons[index] = CONTAMINATED if shared else None
    if settings.near_dedup is not None:
        passed = passing(reasons)
        keys = np.zeros((len(documents), settings.near_dedup.num_bands), np.uint64)
        keys[passed] = band_keys([documents[index].content for index in passed], settings.near_dedup)
        storage.write(f"{folder}/{KEYS}{name}", to_index(keys))
    return [
        Verdict(
            repository=document.repository,
            document=document.id,
            reason=reason,
            preference=(document.license is None, document.id),
            key=content_key(document.content),
            contamination=shared,
        )
        for document, reason, shared in zip(documents, reasons, contamination, strict=True)
    ]


def passing(reasons: Sequence[str | None]) -> list[int]:
    """The indices of documents that nothing rejects so far."""
    return [index for index, reason in enumerate(reasons) if reason is None]


def _length(lengths: Any, index: int) -> int:
    return int(lengths[index])


@dataclass(frozen=True)
class Written:
    """What the second pass returns of one shard."""

    files: list[File]
    tallies: dict[str, Tally]
    samples: dict[str | None, list[Sample]]
    """Of each reason, and of what is kept (None)."""
    origins: Counter[tuple[str | None, ...]]
    """Documents kept, by `ORIGIN`."""
    redacted: Redacted = field(default_factory=Redacted)
    """In documents kept."""


def write_shard(
    placement: Placement, *, uri: str, folder: str, raw: Manifest, settings: CurateSettings, seed: int
) -> Written:
    """The second pass over one shard: what is kept goes to its split, what is not is counted and sampled."""
    import pyarrow as pa

    storage = open_storage(uri)
    table, redacted = redact_table(from_parquet(raw.read(storage, placement.name)), settings.redact)
    written = Written([], {split: Tally() for split in SPLITS}, {}, Counter())
    drawn: dict[str | None, list[tuple[float, int]]] = defaultdict(list)
    rows = table.drop_columns(["content"]).to_pylist()
    for index, (row, reason, split) in enumerate(zip(rows, placement.reasons, placement.splits, strict=True)):
        if reason is None:
            written.tallies[split].keep(row)
            written.origins[tuple(row[name] for name in ORIGIN)] += 1
            written.redacted.count(redacted[index])
        else:
            written.tallies[split].reject(reason, row["size_bytes"])
        identity = document_id(row["source"], row["repository"], row["path"])
        drawn[reason].append((uniform(seed, "sample", identity), index))
    for split in SPLITS:
        here = [
            reason is None and where == split for reason, where in zip(placement.reasons, placement.splits, strict=True)
        ]
        part = table.filter(pa.array(here))
        if part.num_rows:
            name = f"{split}/part-{placement.index:05d}.parquet"
            written.files.append(write_file(storage, folder, name, to_parquet(part)))
            if settings.near_dedup is not None:
                keys = from_index(storage.read(f"{folder}/{KEYS}{placement.name}"), len(here))
                written.files.append(write_file(storage, folder, index_of(name), to_index(keys[here])))
    for reason, found in drawn.items():
        written.samples[reason] = [
            (draw, _sample(reason, rows[index], table["content"][index].as_py(), settings))
            for draw, index in smallest(found, reason, settings)
        ]
    return written


def _sample(reason: str | None, row: Mapping[str, Any], content: str, settings: CurateSettings) -> dict[str, Any]:
    """What a person sees of a document; its beginning is redacted even where the corpus is not."""
    if settings.redact is None:
        content, _ = redact(content, RedactSettings())
    shown = {name: row[name] for name in ("source", "repository", "path", "license", "size_bytes")}
    return {"reason": reason, **shown, "excerpt": content[:EXCERPT_CHARACTERS]}


def smallest(drawn: list[tuple[float, T]], reason: str | None, settings: CurateSettings) -> list[tuple[float, T]]:
    """The documents to show of one reason, or of those that are kept."""
    number = settings.num_kept_samples if reason is None else settings.num_rejected_samples
    return heapq.nsmallest(number, drawn, key=itemgetter(0))
