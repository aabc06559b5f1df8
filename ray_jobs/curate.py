"""Raw to curated documents, split: redaction, licences, filters, benchmarks, duplicates, the split by repository.

Two passes over the shards (`ray_jobs.curate_shard`). The first judges every document on its own and returns keys for
each that passes; the driver then knows which of the duplicates stays, near ones compared by tasks of their own
(`ray_jobs.near_duplicates`), and which repositories are held out; the second writes the splits.
"""

import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

from codeparrot.config import Recipe
from codeparrot.decontaminate import Problems, read_benchmarks
from codeparrot.dedup import exact_duplicates
from codeparrot.documents import origin_of
from codeparrot.errors import EmptyCorpusError
from codeparrot.manifest import File, Manifest, json_lines
from codeparrot.splits import SPLITS, CurateSettings, validation_units
from codeparrot.storage import open_storage, sha256_hex
from ray_jobs import near_duplicates
from ray_jobs.cluster import spread
from ray_jobs.curate_shard import (
    ORIGIN,
    Placement,
    Sample,
    Verdict,
    Written,
    judge_shard,
    passing,
    smallest,
    write_shard,
)
from ray_jobs.data_card import Clusters, contamination, write_card
from ray_jobs.near_duplicates import Near
from ray_jobs.near_index import KEYS, Corpus, Shard, earlier
from ray_jobs.progress import size
from ray_jobs.stage import Output, Stage, Work, main, stage_settings
from ray_jobs.tally import Redacted, Tally

logger = logging.getLogger(__name__)

DUPLICATE = "exact_duplicate"
NEAR_DUPLICATE = "near_duplicate"


def run(work: Work) -> Output:
    """Judge, decide, write."""
    raw, settings, seed = work.inputs["raw"], work.recipe.curate, work.recipe.seed
    names = raw.names("part-")
    judge = partial(
        judge_shard,
        uri=work.storage.uri,
        folder=work.attempt.folder,
        raw=raw,
        settings=settings,
        seed=seed,
        problems=work.plan.problems,
    )
    verdicts = spread("curate: judge", names, judge)
    reasons, duplicates = _duplicates(work, names, verdicts)
    placements = _decide(names, verdicts, reasons, settings, seed)
    place = partial(
        write_shard, uri=work.storage.uri, folder=work.attempt.folder, raw=raw, settings=settings, seed=seed
    )
    written = spread("curate: write", placements, place)
    flat = [verdict for shard in verdicts for verdict in shard]
    files, counts, samples = _gather(work, written)
    if work.plan.problems is not None:
        files.append(work.attempt.write("contaminated.jsonl", _contamination(flat)))
        counts["contaminated"] = contamination(flat, work.plan.problems)
    ids = [verdict.document for verdict in flat]
    clusters = {}
    if settings.exact_dedup:
        clusters[DUPLICATE] = Clusters(duplicates.exact, ids)
        counts["exact_dedup"] = clusters[DUPLICATE].counts()
    if settings.near_dedup is not None:
        clusters[NEAR_DUPLICATE] = Clusters(duplicates.near, ids)
        counts["near_dedup"] = {**clusters[NEAR_DUPLICATE].counts(), **duplicates.counts}
        files.append(work.attempt.write("near_duplicates.parquet", near_duplicates.audit(duplicates.near, ids)))
    return [*files, *write_card(work, files, counts, samples, clusters)], counts


def _contamination(verdicts: list[Verdict]) -> bytes:
    """Every document that shares text with benchmarks, and with which problems how much, as JSON lines."""
    return json_lines(
        {**origin_of(verdict.document), "shared": verdict.contamination}
        for verdict in verdicts
        if verdict.contamination
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


def _duplicates(work: Work, names: list[str], verdicts: list[list[Verdict]]) -> tuple[list[str | None], Duplicates]:
    """The reasons of all documents, those for duplicates included."""
    settings = work.recipe.curate
    flat = [verdict for shard in verdicts for verdict in shard]
    reasons = [verdict.reason for verdict in flat]
    exact: list[Near] = []
    if settings.exact_dedup:
        passed = passing(reasons)
        twins = exact_duplicates([flat[i].key for i in passed], [flat[i].preference for i in passed])
        for twin in twins:
            reasons[passed[twin]] = DUPLICATE
        stays = {flat[i].key: flat[i].document for i in passing(reasons)}
        exact = [Near(passed[twin], stays[flat[passed[twin]].key], None, 1.0) for twin in twins]
    if settings.near_dedup is None:
        return reasons, Duplicates(exact, [], {})
    folder = work.attempt.folder
    near, counts = near_duplicates.find(
        [Shard(0, name, f"{folder}/{KEYS}{name}", len(shard)) for name, shard in zip(names, verdicts, strict=True)],
        passing(reasons),
        [verdict.preference for verdict in flat],
        [verdict.document for verdict in flat],
        corpus=Corpus(work.storage.uri, work.inputs["raw"], settings.redact),
        against=work.plan.against,
        settings=settings.near_dedup,
        folder=folder,
    )
    for removal in near:
        reasons[removal.index] = NEAR_DUPLICATE
    return reasons, Duplicates(exact, near, counts)


def _decide(
    names: list[str],
    verdicts: list[list[Verdict]],
    reasons: list[str | None],
    settings: CurateSettings,
    seed: int,
) -> list[Placement]:
    flat = [verdict for shard in verdicts for verdict in shard]
    units = [_unit(verdict, settings) for verdict in flat]
    kept = [unit for unit, reason in zip(units, reasons, strict=True) if reason is None]
    if not kept:
        tally = Tally()
        for reason in reasons:
            tally.reject(str(reason), 0)
        raise EmptyCorpusError(
            f"no document is left after curation of {len(flat):,}: {tally.reasons_text()}; loosen curate.licenses, "
            "curate.filters or curate.decontaminate, or collect other code"
        )
    held_out = validation_units(kept, seed=seed, fraction=settings.validation_fraction)
    splits = ["validation" if unit in held_out else "train" for unit in units]
    placements, start = [], 0
    for index, (name, shard) in enumerate(zip(names, verdicts, strict=True)):
        stop = start + len(shard)
        placements.append(Placement(name, index, reasons[start:stop], splits[start:stop]))
        start = stop
    return placements


def _unit(verdict: Verdict, settings: CurateSettings) -> str:
    return verdict.repository if settings.split_by == "repository" else verdict.document


def _gather(work: Work, written: list[Written]) -> tuple[list[File], dict[str, Any], dict[str | None, list[Any]]]:
    """The files of all shards and those that sum them up, counts, and samples by reason."""
    settings = work.recipe.curate
    total = {split: Tally() for split in SPLITS}
    pooled: dict[str | None, list[Sample]] = defaultdict(list)
    for shard in written:
        for split in SPLITS:
            total[split].add(shard.tallies[split])
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
    both = Tally()
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
    if settings.redact is not None:
        counts["redacted"] = _redacted(written)
    return files, counts, chosen


def _redacted(written: list[Written]) -> dict[str, Any]:
    """What was redacted in documents that are kept, for the manifest, and said."""
    total = Redacted()
    for shard in written:
        total.add(shard.redacted)
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
