"""One shard in the two passes of curation: judged, document by document, and written to its splits.

What the tasks of `ray_jobs.curate` run, and what they tell the driver.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from codeparrot.decontaminate import Problems
from codeparrot.dedup import content_key
from codeparrot.documents import Document, from_parquet, to_parquet
from codeparrot.draws import uniform
from codeparrot.filters import reject, reject_license
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.near_dedup import band_keys
from codeparrot.redact import redact_table
from codeparrot.splits import SPLITS, CurateSettings
from codeparrot.storage import open_storage
from codeparrot.tokenizer import gpt2_encoder
from ray_jobs.near_index import PREFIX, to_index
from ray_jobs.tally import Redacted, Tally

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
    bands: bytes
    """`num_bands` keys of 8 bytes, if near duplicates are looked for and the document passed."""


@dataclass(frozen=True)
class Placement:
    """What the second pass does with one shard: a reason to reject, or a split, for every document."""

    name: str
    index: int
    reasons: list[str | None]
    splits: list[str]
    bands: list[bytes]
    """The keys of every document, for the index of near duplicates; empty ones if it has none."""


Sample = tuple[float, dict[str, str]]
"""(what decides which are shown, the text to show)"""


def judge_shard(
    name: str, *, uri: str, raw: Manifest, settings: CurateSettings, seed: int, problems: Problems | None
) -> list[Verdict]:
    """The first pass over one shard: every document on its own."""
    table, _ = redact_table(from_parquet(raw.read(open_storage(uri), name)), settings.redact)
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
    bands = [b""] * len(documents)
    if settings.near_dedup is not None:
        passed = passing(reasons)
        keys = band_keys([documents[index].content for index in passed], settings.near_dedup)
        for index, row in zip(passed, keys, strict=True):
            bands[index] = row.tobytes()
    return [
        Verdict(
            repository=document.repository,
            document=document.id,
            reason=reason,
            preference=(document.license is None, document.id),
            key=content_key(document.content),
            contamination=shared,
            bands=own,
        )
        for document, reason, shared, own in zip(documents, reasons, contamination, bands, strict=True)
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
    samples: dict[str, list[Sample]]
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
    for split in SPLITS:
        here = [
            reason is None and where == split for reason, where in zip(placement.reasons, placement.splits, strict=True)
        ]
        part = table.filter(pa.array(here))
        for row in part.drop_columns(["content"]).to_pylist():
            written.tallies[split].keep(row["repository"], row["license"], row["size_bytes"])
            written.origins[tuple(row[name] for name in ORIGIN)] += 1
        if part.num_rows:
            name = f"{split}/part-{placement.index:05d}.parquet"
            written.files.append(write_file(storage, folder, name, to_parquet(part)))
            bands = [own for own, is_here in zip(placement.bands, here, strict=True) if is_here]
            signed = [row for row, own in enumerate(bands) if own]
            if settings.near_dedup is not None:
                data = to_index(signed, [bands[row] for row in signed])
                written.files.append(write_file(storage, folder, f"{PREFIX}{name}", data))
    for reason, values in zip(placement.reasons, redacted, strict=True):
        if reason is None:
            written.redacted.count(values)
    rejected = [index for index, reason in enumerate(placement.reasons) if reason is not None]
    samples: dict[str, list[Sample]] = defaultdict(list)
    for index, row in zip(rejected, table.take(pa.array(rejected, pa.int64())).to_pylist(), strict=True):
        reason = str(placement.reasons[index])
        written.tallies["train"].reject(reason, row["size_bytes"])
        text = {
            "reason": reason,
            "repository": row["repository"],
            "path": row["path"],
            "excerpt": row["content"][:EXCERPT_CHARACTERS],
        }
        samples[reason].append((uniform(seed, "sample", Document(**row).id), text))
    written.samples.update({reason: smallest(found, settings) for reason, found in samples.items()})
    return written


def smallest(samples: list[Sample], settings: CurateSettings) -> list[Sample]:
    """The rejected documents to show of one reason."""
    return heapq.nsmallest(settings.num_rejected_samples, samples, key=lambda sample: sample[0])
