"""Exact duplicates, against one query of DuckDB over the same Parquet, which keeps the same documents.

Two documents are the same if only white space at the ends of lines and blank lines differ. Ours reads a file of
Parquet in one process per core, as the curation does, and decides in one; DuckDB has as many threads.
"""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from benchmarks.code import described, documents, megabytes
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.dedup import content_key, exact_duplicates
from codeparrot.documents import from_parquet, to_parquet, to_table

NUM_CORES = 2
NUM_SHARDS = 8
CORPUS_BYTES = 400_000_000
QUERY = r"""
    SELECT arg_min(id, id) AS id FROM (
        SELECT source || chr(1) || repository || chr(1) || path AS id,
               md5(trim(regexp_replace(content, '[ \t\f\v]*(\n[ \t\f\v]*)*(\n|$)', chr(10), 'g'), chr(10))) AS key
        FROM read_parquet(?)
    ) GROUP BY key
"""
Keyed = list[tuple[str, bytes]]


def _keys(path: Path) -> Keyed:
    table = from_parquet(path.read_bytes(), ["source", "repository", "path", "content"])
    names = zip(*(table[name].to_pylist() for name in ("source", "repository", "path")), strict=True)
    keys = [content_key(content) for content in table["content"].to_pylist()]
    return list(zip(map("\1".join, names), keys, strict=True))


class _ExactDedup(Comparison):
    def __init__(self, texts: Sequence[str], shards: Sequence[Path], pool: ProcessPoolExecutor) -> None:
        import duckdb

        self._texts, self._shards, self._pool = texts, shards, pool
        self._mb = megabytes(texts)
        self._database = duckdb.connect(config={"threads": NUM_CORES})

    def _ours(self) -> set[str]:
        found = [pair for keyed in self._pool.map(_keys, self._shards) for pair in keyed]
        names = np.array([name for name, _ in found], object)
        keys = np.frombuffer(b"".join(key for _, key in found), np.uint64).reshape(len(found), -1)
        dropped, _ = exact_duplicates(keys, np.argsort(np.argsort(names)))
        return {*np.delete(names, dropped)}

    def _peer(self) -> set[str]:
        rows = self._database.execute(QUERY, [[str(path) for path in self._shards]]).fetchall()
        return {name for (name,) in rows}

    def check(self) -> str:
        ours, theirs = self._ours(), self._peer()
        if ours != theirs:
            raise Unequal(f"ours keeps {len(ours):,}, DuckDB {len(theirs):,}, both {len(ours & theirs):,}")
        return f"the {len(ours):,} documents that are kept of {described(self._texts)}"

    def ours(self) -> float:
        began = time.perf_counter()
        self._ours()
        return self._mb / (time.perf_counter() - began)

    def peer(self) -> float:
        began = time.perf_counter()
        self._peer()
        return self._mb / (time.perf_counter() - began)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    found = documents(CORPUS_BYTES // (20 if trial else 1))
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(NUM_CORES, get_context("forkserver")) as pool,
    ):
        shards = []
        for index in range(NUM_SHARDS):
            shards.append(Path(folder) / f"part-{index}.parquet")
            shards[-1].write_bytes(to_parquet(to_table(found[index::NUM_SHARDS])))
        yield _ExactDedup([document.content for document in found], shards, pool)


BENCHMARK = Benchmark(
    title="exact duplicates in Parquet, MB/s on two cores, against DuckDB",
    unit="MB/s",
    peer=installed("duckdb"),
    ratio="ours / peer",
    target=Target(">=", 1),
    comparison=_comparison,
)
