"""One shard in the two passes of curation: judged, document by document, and written to its splits.

What the tasks of `ray_jobs.curate` run, and what they tell the driver. The first pass keeps what is costly to find out
for those that follow: the documents as they are redacted, and the keys of their near duplicates.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from codeparrot.decontaminate import Problems
from codeparrot.dedup import PREFERENCE, content_keys
from codeparrot.documents import Document, document_id, from_parquet, to_parquet
from codeparrot.draws import uniform
from codeparrot.filters import reject, reject_license
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.near_dedup import band_keys
from codeparrot.redact import RedactSettings, redact_all, redact_table
from codeparrot.splits import SPLITS, CurateSettings
from codeparrot.storage import open_storage
from codeparrot.tokenizer import gpt2_encoder
from ray_jobs.near_index import KEYS, from_index, index_of, to_index
from ray_jobs.tally import Tally
from ray_jobs.verdicts import ID, Judged, Reasons, passing, staying

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")

EXCERPT_CHARACTERS = 2000
LOOKED_AT_CHARACTERS = 20_000
"""Of a document that is shown, for secrets in its excerpt; a private key is told by what follows its first line."""
CONTAMINATED = "contaminated"
ORIGIN = ("source", "repository", "revision", "license")
"""Whom a document is owed to: a line of the attribution list for each."""
REPEATED = {"source", "repository", "license"}
SHOWN = ("source", "repository", "path", "license", "size_bytes")


def judge_shard(
    name: str,
    *,
    uri: str,
    folder: str,
    raw: Manifest,
    settings: CurateSettings,
    seed: int,
    problems: Problems | None,
) -> Judged:
    """The first pass over one shard: every document on its own."""
    storage = open_storage(uri)
    table, redacted = redact_table(from_parquet(raw.read(storage, name)), settings.redact)
    texts = table["content"].to_pylist()
    reasons = _filtered(table, texts, settings, seed)
    contamination: dict[int, dict[str, int]] = {}
    if problems is not None:
        passed = passing(reasons).tolist()
        found = zip(passed, problems.shared([texts[index] for index in passed]), strict=True)
        contamination = {index: shared for index, shared in found if shared}
        reasons[list(contamination)] = CONTAMINATED
    if settings.near_dedup is not None:
        passed = passing(reasons)
        keys = np.zeros((len(texts), settings.near_dedup.num_bands), np.uint64)
        keys[passed] = band_keys([texts[index] for index in passed], settings.near_dedup)
        storage.write(f"{folder}/{KEYS}{name}", to_index(keys))
    return Judged(
        documents=_small(table.select(PREFERENCE)),
        reasons=reasons,
        keys=content_keys(table["content"]),
        contamination=contamination,
        redacted={index: values for index, values in enumerate(redacted) if values},
        file=None if settings.redact is None else write_file(storage, folder, name, to_parquet(table)),
    )


def _small(documents: "pa.Table") -> "pa.Table":
    """The same with numbers in place of names that repeat."""
    for place, name in enumerate(documents.column_names):
        if name in REPEATED:
            documents = documents.set_column(place, name, documents[name].dictionary_encode())
    return documents


def _filtered(table: "pa.Table", texts: Sequence[str], settings: CurateSettings, seed: int) -> Reasons:
    """Why filters reject documents."""
    others = table.drop_columns(["content"]).to_pylist()
    documents = [Document(content=text, **other) for text, other in zip(texts, others, strict=True)]
    reasons: list[str | None] = [reject_license(document, settings.licenses) for document in documents]
    left = [index for index, reason in enumerate(reasons) if reason is None]
    languages = {documents[index].language for index in left}
    needed = any(settings.filters.of(language).min_characters_per_token is not None for language in languages)
    lengths: Any = gpt2_encoder().encode([texts[index] for index in left])[1] if needed else []
    for place, index in enumerate(left):
        num_tokens = partial(_length, lengths, place)
        reasons[index] = reject(documents[index], settings.filters, seed=seed, num_tokens=num_tokens)
    found: Reasons = np.array(reasons, object)
    return found


def _length(lengths: Any, index: int) -> int:
    return int(lengths[index])


@dataclass(frozen=True)
class Placement:
    """What the second pass does with one shard."""

    name: str
    index: int
    reasons: Reasons
    is_held_out: npt.NDArray[np.bool_]
    """The documents whose split is that of validation."""


Sample = tuple[float, dict[str, Any]]
"""(what decides which are shown, what to show of a document)"""


@dataclass(frozen=True)
class Written:
    """What the second pass returns of one shard."""

    files: list[File]
    kept: dict[str, Tally]
    """By split."""
    rejected: Tally
    samples: dict[str | None, list[Sample]]
    """Of each reason, and of what is kept (None)."""
    origins: Counter[tuple[str | None, ...]]
    """Documents kept, by `ORIGIN`."""


def write_shard(
    placement: Placement, *, uri: str, folder: str, documents: Manifest, settings: CurateSettings, seed: int
) -> Written:
    """The second pass over one shard: what is kept goes to its split, what is not is counted and sampled."""
    storage, reasons = open_storage(uri), placement.reasons
    table = from_parquet(documents.read(storage, placement.name))
    is_kept = staying(reasons)
    written = Written([], {split: Tally() for split in SPLITS}, Tally(), {}, Counter())
    written.rejected.reject(reasons[~is_kept], table["size_bytes"].to_numpy()[~is_kept].tolist())
    for split, here in zip(SPLITS, (is_kept & ~placement.is_held_out, is_kept & placement.is_held_out), strict=True):
        part = table.filter(here)
        if part.num_rows:
            name = f"{split}/part-{placement.index:05d}.parquet"
            written.files.append(write_file(storage, folder, name, to_parquet(part)))
            written.kept[split].keep(part)
            written.origins.update(_origins(part))
            if settings.near_dedup is not None:
                keys = from_index(storage.read(f"{folder}/{KEYS}{placement.name}"), len(here))
                written.files.append(write_file(storage, folder, index_of(name), to_index(keys[here])))
    written.samples.update(_samples(table, reasons, settings, seed))
    return written


def _origins(part: "pa.Table") -> dict[tuple[str | None, ...], int]:
    """How many of these documents have which origin."""
    found = part.group_by(list(ORIGIN)).aggregate([([], "count_all")])
    origins = zip(*(found[name].to_pylist() for name in ORIGIN), strict=True)
    return dict(zip(origins, found["count_all"].to_pylist(), strict=True))


def _samples(
    table: "pa.Table", reasons: Reasons, settings: CurateSettings, seed: int
) -> dict[str | None, list[Sample]]:
    """The documents of this shard that may be shown, by reason."""
    drawn: dict[str | None, list[tuple[float, int]]] = defaultdict(list)
    names = zip(*(table[name].to_pylist() for name in ID), strict=True)
    for index, (reason, name) in enumerate(zip(reasons, names, strict=True)):
        drawn[reason].append((uniform(seed, "sample", document_id(*name)), index))
    chosen = [(reason, *pair) for reason, found in drawn.items() for pair in smallest(found, reason, settings)]
    rows = table.take(np.array([index for _, _, index in chosen], np.int64))
    excerpts = [text[:LOOKED_AT_CHARACTERS] for text in rows["content"].to_pylist()]
    if settings.redact is None:  # what a person sees is redacted even where the corpus is not
        excerpts = [text for text, _ in redact_all(excerpts, RedactSettings())]
    samples: dict[str | None, list[Sample]] = {reason: [] for reason in drawn}
    for (reason, draw, _), row, text in zip(chosen, rows.select(SHOWN).to_pylist(), excerpts, strict=True):
        samples[reason].append((draw, {"reason": reason, **row, "excerpt": text[:EXCERPT_CHARACTERS]}))
    return samples


def smallest(drawn: list[tuple[float, T]], reason: str | None, settings: CurateSettings) -> list[tuple[float, T]]:
    """The documents to show of one reason, or of those that are kept."""
    number = settings.num_kept_samples if reason is None else settings.num_rejected_samples
    return heapq.nsmallest(number, drawn, key=itemgetter(0))
