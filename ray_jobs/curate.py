"""Raw to curated documents, split: redaction, licences, filters, benchmarks, duplicates, the split by repository.

Two passes over the shards (`ray_jobs.curate_shard`). The first judges every document on its own and returns keys for
each that passes; the driver then knows which of the duplicates stays, near ones compared by tasks of their own
(`ray_jobs.near_duplicates`), and which repositories are held out; the second writes the splits. What the driver knows
of documents are columns (`ray_jobs.verdicts`).
"""

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.config import Recipe
from codeparrot.decontaminate import Problems, read_benchmarks
from codeparrot.dedup import exact_duplicates
from codeparrot.documents import origin_of
from codeparrot.errors import EmptyCorpusError
from codeparrot.manifest import File, Manifest, json_lines
from codeparrot.splits import SPLITS, validation_units
from codeparrot.storage import open_storage, sha256_hex
from ray_jobs import near_duplicates
from ray_jobs.cluster import spread
from ray_jobs.curate_shard import ORIGIN, Placement, Sample, Written, judge_shard, smallest, write_shard
from ray_jobs.data_card import Clusters, contamination, write_card
from ray_jobs.near_duplicates import Near
from ray_jobs.near_index import KEYS, Corpus, Shard, earlier
from ray_jobs.progress import size
from ray_jobs.stage import Output, Stage, Work, main, stage_settings
from ray_jobs.tally import Redacted, Tally
from ray_jobs.verdicts import Verdicts

logger = logging.getLogger(__name__)

DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"


def run(work: Work) -> Output:
    """Judge, decide, write."""
    raw, settings, seed = work.inputs["raw"], work.recipe.curate, work.recipe.seed
    names, uri, folder = raw.names("part-"), work.storage.uri, work.attempt.folder
    asked = {"raw": raw, "problems": work.plan.problems}
    judge = partial(judge_shard, uri=uri, folder=folder, settings=settings, seed=seed, **asked)
    judged = spread("curate: judge", names, judge, kept=work.kept)
    verdicts = Verdicts(judged)
    as_judged = [shard.file for shard in judged if shard.file is not None]
    documents = work.attempt.manifest(as_judged, {}) if as_judged else raw
    del judged
    duplicates = _duplicates(work, names, verdicts, documents)
    is_held_out = _held_out(work, verdicts)
    parts = zip(names, *map(verdicts.by_shard, (verdicts.reasons, is_held_out)), strict=True)
    placements = [Placement(name, index, *arrays) for index, (name, *arrays) in enumerate(parts)]
    place = partial(write_shard, uri=uri, folder=folder, documents=documents, settings=settings, seed=seed)
    written = spread("curate: write", placements, place, kept=work.kept)
    files, counts, samples = _gather(work, written)
    if settings.redact is not None:
        counts["redacted"] = _redacted(verdicts)
    if work.plan.problems is not None:
        files.append(work.attempt.write("contaminated.jsonl", _contamination(verdicts)))
        counts["contaminated"] = contamination(verdicts.contamination.values(), work.plan.problems)
    clusters = {}
    if settings.exact_dedup:
        clusters[DUPLICATE] = Clusters(duplicates.exact, verdicts.ids)
        counts["exact_dedup"] = clusters[DUPLICATE].counts()
    if settings.near_dedup is not None:
        clusters[NEAR_DUPLICATE] = Clusters(duplicates.near, verdicts.ids)
        counts["near_dedup"] = {**clusters[NEAR_DUPLICATE].counts(), **duplicates.counts}
        audit = near_duplicates.audit(duplicates.near, verdicts.ids)
        files.append(work.attempt.write("near_duplicates.parquet", audit))
    return [*files, *write_card(work, files, counts, samples, clusters)], counts


def _contamination(verdicts: Verdicts) -> bytes:
    """Every document that shares text with benchmarks, and with which problems how much, as JSON lines."""
    return json_lines(
        {**origin_of(verdicts.ids[index]), "shared": shared} for index, shared in verdicts.contamination.items()
    )


@dataclass(frozen=True)
class Outside:
    """What curation looks at beside the raw documents."""

    problems: Problems | None
    """Of benchmarks, which nothing may be learned from by heart."""
    against: list[Corpus]
    """Earlier corpora, whose documents are not to be learned twice."""


def plan(recipe: Recipe) -> tuple[str, Outside]:
    """Both, and a digest of them."""
    settings = recipe.curate
    asked, problems = ("", None) if settings.decontaminate is None else read_benchmarks(settings.decontaminate)
    if settings.near_dedup is None or not settings.near_dedup.against:
        return asked, Outside(problems, [])
    known, against = earlier(settings.near_dedup, open_storage(recipe.storage.uri))
    return sha256_hex(f"{asked} {known}".encode()), Outside(problems, against)


@dataclass(frozen=True)
class Duplicates:
    """Those that go, each with what stays for it."""

    exact: list[Near]
    near: list[Near]
    counts: dict[str, Any]
    """Of near ones, for the manifest."""


def _duplicates(work: Work, names: list[str], verdicts: Verdicts, documents: Manifest) -> Duplicates:
    """Find them, and give them their reasons. `documents` are those that were judged."""
    settings, reasons = work.recipe.curate, verdicts.reasons
    candidates = verdicts.passing()
    exact: list[Near] = []
    if settings.exact_dedup:
        dropped, stays = exact_duplicates(verdicts.keys[candidates], verdicts.ranks[candidates])
        reasons[candidates[dropped]] = DUPLICATE
        pairs = zip(candidates[dropped].tolist(), candidates[stays].tolist(), strict=True)
        exact = [Near(index, verdicts.ids[kept], None, 1.0) for index, kept in pairs]
    if settings.near_dedup is None:
        return Duplicates(exact, [], {})
    folder = work.attempt.folder
    near, counts = near_duplicates.find(
        [Shard(0, name, f"{folder}/{KEYS}{name}", size) for name, size in zip(names, verdicts.sizes, strict=True)],
        verdicts.passing(),
        verdicts.ranks,
        verdicts.ids,
        corpus=Corpus(work.storage.uri, documents),
        against=work.plan.against,
        settings=settings.near_dedup,
        folder=folder,
        results=work.kept,
    )
    reasons[[removal.index for removal in near]] = NEAR_DUPLICATE
    return Duplicates(exact, near, counts)


def _held_out(work: Work, verdicts: Verdicts) -> npt.NDArray[np.bool_]:
    """Whether the split of each document is that of validation."""
    settings, kept = work.recipe.curate, verdicts.passing()
    if not len(kept):
        tally = Tally()
        tally.reject(verdicts.reasons, repeat(0, len(verdicts.reasons)))
        raise EmptyCorpusError(
            f"no document is left after curation of {len(verdicts.reasons):,}: {tally.reasons_text()}; loosen "
            "curate.licenses, curate.filters or curate.decontaminate, or collect other code"
        )
    units = verdicts.repositories(kept) if settings.split_by == "repository" else verdicts.some_ids(kept)
    held_out = validation_units(units, seed=work.recipe.seed, fraction=settings.validation_fraction)
    return verdicts.are_of(held_out) if settings.split_by == "repository" else verdicts.are(held_out)


def _gather(work: Work, written: list[Written]) -> tuple[list[File], dict[str, Any], dict[str | None, list[Any]]]:
    """The files of all shards and those that sum them up, counts, and samples by reason."""
    settings = work.recipe.curate
    total, both = {split: Tally() for split in SPLITS}, Tally()
    pooled: dict[str | None, list[Sample]] = defaultdict(list)
    for shard in written:
        for split in SPLITS:
            total[split].add(shard.kept[split])
        both.add(shard.rejected)
        for reason, samples in shard.samples.items():
            pooled[reason] += samples
    chosen = {
        reason: [sample for _, sample in smallest(pooled[reason], reason, settings)]
        for reason in sorted(pooled, key=lambda reason: reason or "")
    }
    rejected = [sample for reason, found in chosen.items() if reason is not None for sample in found]
    files = [file for shard in written for file in shard.files]
    files.append(work.attempt.write("rejected.jsonl", json_lines(rejected)))
    files.append(work.attempt.write("attribution.jsonl", _attribution(written)))
    splits = {
        split: {
            "num_documents": tally.num_documents,
            "size_bytes": tally.size_bytes,
            "num_repositories": len(tally.repositories),
        }
        for split, tally in total.items()
    }
    for tally in total.values():
        both.add(tally)
    raw = work.inputs["raw"].counts
    counts = {
        "num_documents_in": raw["num_documents"],
        "size_bytes_in": raw["size_bytes"],
        "splits": splits,
        "validation_repositories": total["validation"].repositories,
        **both.counts(),
    }
    return files, counts, chosen


def _redacted(verdicts: Verdicts) -> dict[str, Any]:
    """What was redacted in documents that are kept, for the manifest, and said."""
    total = Redacted()
    for index, values in verdicts.redacted.items():
        if verdicts.reasons[index] is None:
            total.count(values)
    counts = total.counts()
    kinds = (f"{amount['num_values']:,} {kind}" for kind, amount in counts["by_kind"].items())
    logger.info("curate: redact   %s documents: %s", f"{total.num_documents:,}", ", ".join(kinds) or "nothing found")
    return counts


def _attribution(written: list[Written]) -> bytes:
    """Every repository that documents were kept from, with revision, licence and their number, as JSON lines."""
    total: Counter[tuple[str | None, ...]] = Counter()
    for shard in written:
        total.update(shard.origins)
    rows = sorted(total.items(), key=lambda item: tuple(part or "" for part in item[0]))
    return json_lines({**dict(zip(ORIGIN, origin, strict=True)), "num_documents": count} for origin, count in rows)


def summary(manifest: Manifest) -> tuple[str, str]:
    """Documents and bytes in; documents and bytes kept, and how many of them were redacted."""
    counts: Any = manifest.counts
    redacted = f", {counts['redacted']['num_documents']:,} redacted" if "redacted" in counts else ""
    return (
        f"{counts['num_documents_in']:,} documents, {size(counts['size_bytes_in'])}",
        f"{counts['num_documents']:,} documents, {size(counts['size_bytes'])}{redacted}",
    )


STAGE = Stage(
    makes="curated",
    inputs=("raw",),
    settings=lambda recipe: stage_settings(recipe, "seed", "curate"),
    run=run,
    summary=summary,
    plan=plan,
)

if __name__ == "__main__":
    main("ray_jobs.curate")
