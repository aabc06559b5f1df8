"""Near duplicates, splitting into words included, against datasketch with as many permutations and the same bands.

Both do the same: documents are sets of runs of five words, candidates agree in one of 25 bands of 10 values of a
signature of 256, each is compared with those kept before it, and goes if the exact Jaccard similarity to one of them
is 0.85. Both read the texts from a file of Arrow that two processes have mapped into their memory, and sign in those;
ours also compares in them, group by group, while a MinHashLSH is filled and asked by one. On 5,000 documents brute
force says what is right.
"""

import contextlib
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.code import described, documents, megabytes
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.near_dedup import NUM_BINS, NearDedupSettings, band_keys, components, near_duplicates
from codeparrot.shingles import Hashes, distinct, shingles

NUM_CORES = 2
SETTINGS = NearDedupSettings()
WORD = re.compile(r"[0-9A-Za-z_\u0080-\U0010ffff]+")
BRUTE_FORCE_DOCUMENTS = 5000
SAMPLE_BYTES = 40_000_000
MIN_QUALITY = 0.99
CHUNK = 100
GROUPED_DOCUMENTS = 50
"""Documents whose groups are compared by one call of a process."""


def save(texts: Sequence[str], path: Path) -> Path:
    """Write the texts as one column of a stream of Arrow."""
    table = pa.table({"text": texts})
    with pa.ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table)
    return path


@lru_cache(maxsize=2)
def column(path: Path) -> Any:
    """The texts of a stream of Arrow, without a copy."""
    return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()["text"]


def remove(path: Path, pool: ProcessPoolExecutor) -> set[int]:
    """Ours: the documents that go."""
    keys = np.concatenate([*pool.map(partial(_keys, path), _spans(path))])
    batches: list[list[Any]] = []
    room = 0
    for group in components(keys):
        if room <= 0:
            batches.append([])
            room = GROUPED_DOCUMENTS
        batches[-1].append((group, keys[group]))
        room -= len(group)
    return {index for removed in pool.map(partial(_compare, path), batches) for index in removed}


def _keys(path: Path, span: slice) -> Hashes:
    return band_keys(column(path)[span].cast(pa.binary()).to_pylist(), SETTINGS)


def _compare(path: Path, groups: Sequence[tuple[Any, Hashes]]) -> list[int]:
    removed: list[int] = []
    for group, keys in groups:
        texts = column(path).take(group).cast(pa.binary()).to_pylist()
        sets = distinct(*shingles(texts, SETTINGS.shingle_words, SETTINGS.min_words), len(group))
        removals, _ = near_duplicates(range(len(group)), keys, sets.__getitem__, SETTINGS)
        removed += (int(group[removal.index]) for removal in removals)
    return removed


def remove_by_datasketch(path: Path, pool: ProcessPoolExecutor) -> set[int]:
    """The peer's."""
    from datasketch import MinHashLSH

    lsh: Any = MinHashLSH(num_perm=NUM_BINS, params=(SETTINGS.num_bands, SETTINGS.rows_per_band))
    texts = column(path)
    shingles_of = lru_cache(maxsize=1000)(lambda index: _shingles(texts[index].as_py()))
    removed = set()
    signed = (signature for chunk in pool.map(partial(_sign, path), _spans(path)) for signature in chunk)
    for index, signature in enumerate(signed):
        if signature is None:
            continue
        if _has_near(index, lsh.query(signature), shingles_of):
            removed.add(index)
        else:
            lsh.insert(index, signature)
    return removed


def _has_near(index: int, rivals: Iterable[int], shingles_of: Callable[[int], frozenset[str]]) -> bool:
    own = shingles_of(index)
    return any(len(own & shingles_of(rival)) >= SETTINGS.threshold * len(own | shingles_of(rival)) for rival in rivals)


def _spans(path: Path) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, len(column(path)), CHUNK)]


def _shingles(text: str) -> frozenset[str]:
    words = WORD.findall(text)
    if len(words) < SETTINGS.min_words:
        return frozenset()
    width = SETTINGS.shingle_words
    return frozenset(" ".join(words[start : start + width]) for start in range(len(words) - width + 1))


def _sign(path: Path, span: slice) -> list[Any]:
    from datasketch import MinHash

    found = [[shingle.encode() for shingle in _shingles(text)] for text in column(path)[span].to_pylist()]
    signatures = MinHash.generator(found, num_perm=NUM_BINS)  # which makes the permutations once
    return [signature if parts else None for parts, signature in zip(found, signatures, strict=True)]


def right(texts: Sequence[str]) -> set[int]:
    """What brute force removes."""
    sets = distinct(*shingles(texts, SETTINGS.shingle_words, SETTINGS.min_words), len(texts))
    near: dict[int, set[int]] = {}
    for later, earlier in similar(sets):
        near.setdefault(later, set()).add(earlier)
    removed: set[int] = set()
    for later in sorted(near):
        if near[later] - removed:
            removed.add(later)
    return removed


def similar(sets: Sequence[Any]) -> list[tuple[int, int]]:
    """All pairs (later, earlier) of sets that are near duplicates, from a product of sparse matrices."""
    from scipy import sparse

    columns = np.unique(np.concatenate(sets), return_inverse=True)[1].astype(np.int64)
    sizes = np.array([len(each) for each in sets])
    rows = np.repeat(np.arange(len(sets)), sizes)
    incidence = sparse.csr_array((np.ones(len(rows), np.int32), (rows, columns)))
    common = sparse.tril(incidence @ incidence.T, k=-1).tocoo()
    near = common.data >= SETTINGS.threshold * (sizes[common.row] + sizes[common.col] - common.data)
    return list(zip(common.row[near].tolist(), common.col[near].tolist(), strict=True))


class _NearDedup(Comparison):
    def __init__(self, folder: Path, texts: Sequence[str], checked: Sequence[str], pool: ProcessPoolExecutor) -> None:
        self._checked, self._pool = checked, pool
        self._all, self._some = save(texts, folder / "all"), save(checked, folder / "checked")
        self._mb = megabytes(texts)
        self._quality: list[str] = []

    def check(self) -> str:
        expected = right(self._checked)
        for name, found in (
            ("ours", remove(self._some, self._pool)),
            ("datasketch", remove_by_datasketch(self._some, self._pool)),
        ):
            recall, precision = len(found & expected) / len(expected), len(found & expected) / max(1, len(found))
            self._quality.append(f"{name}: recall {recall:.4f}, precision {precision:.4f}")
            if min(recall, precision) < MIN_QUALITY:
                raise Unequal(f"{self._quality[-1]} of {len(expected)} documents that brute force removes")
        return (
            f"what is removed of {described(self._checked)}, against the {len(expected)} of brute force: "
            f"{'; '.join(self._quality)}"
        )

    def _rate(self, remove: Callable[[Path, ProcessPoolExecutor], set[int]]) -> float:
        began = time.perf_counter()
        remove(self._all, self._pool)
        return self._mb / (time.perf_counter() - began)

    def ours(self) -> float:
        return self._rate(remove)

    def peer(self) -> float:
        return self._rate(remove_by_datasketch)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    scale = 20 if trial else 1
    texts = [document.content for document in documents()]
    size, stop = 0, 0
    while size < SAMPLE_BYTES // scale:
        size, stop = size + len(texts[stop]), stop + 1
    checked = texts[:: max(1, len(texts) * scale // BRUTE_FORCE_DOCUMENTS)]
    with (
        tempfile.TemporaryDirectory() as name,
        ProcessPoolExecutor(NUM_CORES, get_context("forkserver")) as pool,
    ):
        yield _NearDedup(Path(name), texts[:stop], checked, pool)


BENCHMARK = Benchmark(
    title="near duplicates, MB/s on two cores, against MinHashLSH with 256 permutations",
    unit="MB/s",
    peer=installed("datasketch"),
    ratio="ours / peer",
    target=Target(">=", 40, 100),
    comparison=_comparison,
)
