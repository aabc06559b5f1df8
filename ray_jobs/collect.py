"""Sources to raw documents: list, choose deterministically, read in parallel, write shards of Parquet."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from codeparrot.config import Recipe
from codeparrot.documents import to_parquet, to_table
from codeparrot.errors import EmptyCorpusError
from codeparrot.forgotten import forgotten
from codeparrot.manifest import File, Manifest, canonical, write_file
from codeparrot.sources import Entry, choose, open_source, read, shards
from codeparrot.storage import open_storage, sha256_hex
from ray_jobs.cluster import spread
from ray_jobs.progress import size
from ray_jobs.stage import Output, Stage, Work, main, stage_settings
from ray_jobs.tally import Tally


def plan(recipe: Recipe) -> tuple[str, list[Entry]]:
    """The chosen entries; their names, sizes and versions are what the stage depends on."""
    settings, left_out = recipe.collect, forgotten(open_storage(recipe.storage.uri))
    offered = (entry for source in settings.sources for entry in open_source(source).entries())
    entries = [entry for entry in offered if entry.repository not in left_out]
    chosen = choose(entries, seed=recipe.seed, max_bytes=settings.max_bytes, max_file_bytes=settings.max_file_bytes)
    return sha256_hex(canonical([entry.identity() for entry in chosen])), chosen


def run(work: Work) -> Output:
    """Read every shard's entries in parallel."""
    entries: list[Entry] = work.plan
    groups = shards(entries, work.recipe.collect.shard_bytes)
    read_shard = partial(
        _read_shard,
        uri=work.storage.uri,
        folder=work.attempt.folder,
        max_file_bytes=work.recipe.collect.max_file_bytes,
    )
    results = spread("collect", list(enumerate(groups)), read_shard, kept=work.kept)
    total = Tally()
    for _, tally in results:
        total.add(tally)
    if not total.num_documents:
        raise EmptyCorpusError(f"none of {len(entries)} files became a document: {total.reasons_text()}")
    offered = sum(entry.size_bytes for entry in entries)
    counts = {"num_entries": len(entries), "size_bytes_offered": offered, **total.counts()}
    return [file for file, _ in results if file is not None], counts


def _read_shard(
    item: tuple[int, Sequence[Entry]], *, uri: str, folder: str, max_file_bytes: int
) -> tuple[File | None, Tally]:
    index, entries = item
    result = read(entries, max_file_bytes)
    tally = Tally()
    tally.reject((str(reason) for _, reason in result.rejected), (entry.size_bytes for entry, _ in result.rejected))
    if not result.documents:
        return None, tally
    table = to_table(result.documents)
    tally.keep(table)
    return write_file(open_storage(uri), folder, f"part-{index:05d}.parquet", to_parquet(table)), tally


def summary(manifest: Manifest) -> tuple[str, str]:
    """Files and bytes offered; documents and bytes kept."""
    counts: Any = manifest.counts
    return (
        f"{counts['num_entries']:,} files, {size(counts['size_bytes_offered'])}",
        f"{counts['num_documents']:,} documents, {size(counts['size_bytes'])}",
    )


STAGE = Stage(
    makes="raw",
    inputs=(),
    settings=lambda recipe: stage_settings(recipe, "seed", "collect"),
    run=run,
    summary=summary,
    plan=plan,
)

if __name__ == "__main__":
    main("ray_jobs.collect")
