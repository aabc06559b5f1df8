"""The pack stage, as Ray runs it, against its bare back end on the same cores: text to rows, MB/s.

The peer is what one would write without Ray: two processes that each take the next shard, read it, encode it with
gigatoken and write the token ids; then rows are cut and written one shard after the other. The stage does more: it
compares gigatoken with `tokenizers`, plans over all documents, and writes boundaries, provenance and the ledger. Ray
and the processes of both sides run already; the time of the stage is that of its `run`, of both splits.
"""

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.code import documents
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.config import Recipe, load_recipe
from codeparrot.documents import Document, from_parquet, to_parquet, to_table
from codeparrot.lease import Lease
from codeparrot.manifest import Attempt, File, Manifest
from codeparrot.packing import encode_documents, token_dtype
from codeparrot.storage import LocalStorage
from codeparrot.tokenizer import kept_encoder, tokenizer_files, train_tokenizer
from ray_jobs import pack
from ray_jobs.cluster import ray_session
from ray_jobs.stage import Work

NUM_CORES = 2
RECIPE = "recipes/tiny.yaml"
MAX_SEQ_LEN, VOCAB_SIZE = 1024, 32_768
CORPUS_BYTES, SHARD_BYTES = 400_000_000, 25_000_000
TRAINING_BYTES = 20_000_000


class _Overhead(Comparison):
    def __init__(self, folder: Path, corpus_bytes: int, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._folder = folder
        self._storage = LocalStorage(str(folder / "store"))
        settings = [f"pack.max_seq_len={MAX_SEQ_LEN}", f"storage.uri={self._storage.uri}"]
        self._recipe: Recipe = load_recipe(RECIPE, settings)
        found = documents(corpus_bytes)
        self._megabytes = sum(document.size_bytes for document in found) / 1e6
        few = max(1, len(found) * TRAINING_BYTES // corpus_bytes)
        self._tokenizer_json = train_tokenizer([each.content.encode() for each in found[:few]], VOCAB_SIZE)
        self._curated = self._commit("curated", _shards(found))
        self._tokenizer = self._commit("tokenizer", tokenizer_files(self._tokenizer_json, MAX_SEQ_LEN))

    def _commit(self, prefix: str, files: dict[str, bytes]) -> Manifest:
        attempt = Attempt(self._storage, "benchmark", prefix, {}, {}, "")
        return attempt.commit([attempt.write(name, data) for name, data in files.items()], {})

    def _pack(self) -> tuple[str, list[File]]:
        attempt = Attempt(self._storage, "pack", "packed", {}, {}, "")
        inputs = {"curated": self._curated, "tokenizer": self._tokenizer}
        work = Work(self._recipe, self._storage, attempt, inputs, frozenset(), Lease(self._storage, "packed"))
        files, _ = pack.run(work)
        return attempt.folder, list(files)

    def _pack_bare(self) -> list[Path]:
        """Rows of both splits, by file; what is left over last."""
        written = []
        for split in ("train", "validation"):
            paths = [str(self._storage.root / self._curated.path(name)) for name in self._curated.names(f"{split}/")]
            encode = partial(_encode, tokenizer_json=self._tokenizer_json, folder=str(self._folder / "bare"))
            encoded = self._pool.map(encode, paths)
            rest = np.empty(0, token_dtype(VOCAB_SIZE))
            for index, path in enumerate(encoded):
                tokens = np.concatenate([rest, np.fromfile(path, token_dtype(VOCAB_SIZE))])
                whole = len(tokens) // MAX_SEQ_LEN * MAX_SEQ_LEN
                rest = tokens[whole:]
                written.append(self._folder / "bare" / f"{split}-{index:05d}.npy")
                np.save(written[-1], tokens[:whole].reshape(-1, MAX_SEQ_LEN))
            written.append(self._folder / "bare" / f"{split}-rest.npy")
            np.save(written[-1], rest)
        return written

    def check(self) -> str:
        folder, files = self._pack()
        names = [file.name for file in files]
        parts = [name for split in ("train", "validation") for name in _in_order(names, split)]
        ours = _flat([np.load(io.BytesIO(self._storage.read(f"{folder}/{name}"))) for name in parts])
        bare = _flat([np.load(path) for path in self._pack_bare()])
        if not np.array_equal(ours, bare):
            raise Unequal("the tokens in rows and remainders")
        self._storage.delete([path for path, _ in self._storage.list("packed/")])
        return f"{len(ours):,} tokens in rows and remainders, of {self._megabytes:.0f} MB"

    def ours(self) -> float:
        began = time.perf_counter()
        self._pack()
        seconds = time.perf_counter() - began
        self._storage.delete([path for path, _ in self._storage.list("packed/")])
        return self._megabytes / seconds

    def peer(self) -> float:
        began = time.perf_counter()
        self._pack_bare()
        return self._megabytes / (time.perf_counter() - began)


def _shards(found: list[Document]) -> dict[str, bytes]:
    """Curated shards of about SHARD_BYTES; one of them is for validation."""
    groups, room = list[list[Document]](), 0
    for document in found:
        if room <= 0:
            groups.append([])
            room = SHARD_BYTES
        groups[-1].append(document)
        room -= document.size_bytes
    files = {f"train/part-{index:05d}.parquet": to_parquet(to_table(group)) for index, group in enumerate(groups[1:])}
    return files | {"validation/part-00000.parquet": to_parquet(to_table(groups[0]))}


def _in_order(names: list[str], split: str) -> list[str]:
    rows = sorted(name for name in names if name.startswith(f"{split}/rows-"))
    return [*rows, *(name for name in names if name == f"{split}/remainder.npy")]


def _flat(arrays: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate([array.flatten() for array in arrays])


def _encode(path: str, *, tokenizer_json: str, folder: str) -> str:
    """The tokens of a shard, in a file."""
    texts = from_parquet(Path(path).read_bytes(), ["content"])["content"].to_pylist()
    tokens, _ = encode_documents(texts, kept_encoder(tokenizer_json))
    written = Path(folder) / f"{Path(path).parent.name}-{Path(path).stem}.tokens"
    tokens.tofile(written)
    return str(written)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(NUM_CORES, get_context("spawn")) as pool,
        ray_session(),
    ):
        os.environ["RAYON_NUM_THREADS"] = str(NUM_CORES)
        (Path(folder) / "bare").mkdir()
        yield _Overhead(Path(folder), CORPUS_BYTES // (5 if trial else 1), pool)


BENCHMARK = Benchmark(
    title="text to rows by the pack stage in Ray, MB/s on two cores, against its bare back end in two processes",
    unit="MB/s",
    peer=installed("gigatoken"),
    ratio="ours / peer",
    target=Target(">=", 0.9),
    comparison=_comparison,
)
