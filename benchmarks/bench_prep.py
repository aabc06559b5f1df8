"""Raw files to packed rows, against the original's algorithm written plainly (`benchmarks.original_prep`).

Ours are the stages collect, curate (near duplicates included) and pack, as a recipe runs them, in a Ray that runs
already; the peer is given the list of files. Both read the same files from disk (from the page cache, after the
first time), write their rows to disk, and use one tokenizer that was trained before. They cannot keep the same
documents, since the original's algorithm decides in ways that are defects. What is compared first: the tokens of our
rows are those of `tokenizers` for the documents that we keep, none more, none less; and both keep mostly the same.
"""

import contextlib
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.code import MAX_FILE_BYTES, SEED
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.original_prep import prepare
from codeparrot.config import Recipe, load_recipe
from codeparrot.documents import from_parquet
from codeparrot.filters import LicenseSettings
from codeparrot.manifest import Manifest, require_manifest
from codeparrot.near_dedup import NearDedupSettings
from codeparrot.packing import PackSettings
from codeparrot.sources import CollectSettings, PackagesSettings, choose, open_source
from codeparrot.splits import SPLITS, CurateSettings
from codeparrot.storage import StorageSettings, open_storage
from codeparrot.tokenizer import Encoder, TokenizerSettings, gpt2_tokenizer_json
from ray_jobs.cluster import connect, ray_session
from ray_jobs.stage import MADE_BY, run_stage

WIDTH = 1024
SAMPLE_BYTES = 400_000_000
MIN_COMMON = 0.7
SECONDS_PER_HOUR = 3600
DOCUMENT_BYTES = 100
"""What the driver of curation holds of a document (`ray_jobs.verdicts`)."""
STAGES = ("raw", "curated", "packed")
PACKAGES = PackagesSettings(kind="packages")
RECIPE = Path(__file__).parent.parent / "recipes" / "tiny.yaml"
"""For the parts that no stage of these looks at."""


class _Prep(Comparison):
    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._numbers = folder, count()
        self._rates: list[float] = []
        entries = open_source(PACKAGES).entries()
        small = (entry for entry in entries if entry.size_bytes <= MAX_FILE_BYTES)
        self._entries = choose(small, seed=SEED, max_bytes=max_bytes, max_file_bytes=MAX_FILE_BYTES)
        self._mb = sum(entry.size_bytes for entry in self._entries) / 1e6
        self._recipe = load_recipe(RECIPE, []).model_copy(
            update={
                "seed": SEED,
                "collect": CollectSettings(
                    sources=(PACKAGES,), max_bytes=max_bytes, max_file_bytes=MAX_FILE_BYTES, shard_bytes=32_000_000
                ),
                "curate": CurateSettings(
                    licenses=LicenseSettings(allow=None, keep_unknown=True), near_dedup=NearDedupSettings()
                ),
                "tokenizer": TokenizerSettings(vocab_size=32_768),
                "pack": PackSettings(max_seq_len=WIDTH),
            }
        )
        connect()
        first = self._fresh()
        for noun in ("raw", "curated", "tokenizer"):
            self._run(noun, first)
        self._tokenizer = Path(first.storage.uri) / "tokenizer"
        storage = open_storage(first.storage.uri)
        manifest = require_manifest(storage, "tokenizer", "train_tokenizer")
        self._json = manifest.read(storage, "tokenizer.json").decode()

    def _fresh(self) -> Recipe:
        """The recipe, for an empty store."""
        store = self._folder / f"store-{next(self._numbers)}"
        return self._recipe.model_copy(update={"storage": StorageSettings(uri=str(store))})

    @staticmethod
    def _run(noun: str, recipe: Recipe) -> Manifest:
        stage = import_module(f"ray_jobs.{MADE_BY[noun]}").STAGE
        return run_stage(stage, recipe, open_storage(recipe.storage.uri)).manifest

    def _ours(self) -> tuple[float, Recipe]:
        recipe = self._fresh()
        shutil.copytree(self._tokenizer, Path(recipe.storage.uri) / "tokenizer")
        began = time.perf_counter()
        for noun in STAGES:
            self._run(noun, recipe)
        return time.perf_counter() - began, recipe

    def _peer(self) -> tuple[float, set[str], int]:
        folder = self._folder / f"peer-{next(self._numbers)}"
        folder.mkdir()
        plain = json.dumps(json.loads(self._json) | {"added_tokens": []})
        began = time.perf_counter()
        kept, num_rows = prepare(
            self._entries,
            gpt2_json=gpt2_tokenizer_json(),
            tokenizer_json=plain,
            eos=Encoder(self._json).eos_token_id,
            width=WIDTH,
            folder=folder,
        )
        seconds = time.perf_counter() - began
        shutil.rmtree(folder)
        return seconds, kept, num_rows

    def check(self) -> str:
        import tokenizers

        _, recipe = self._ours()
        storage = open_storage(recipe.storage.uri)
        curated, packed = (require_manifest(storage, noun, MADE_BY[noun]) for noun in ("curated", "packed"))
        plain: Any = tokenizers.Tokenizer.from_str(json.dumps(json.loads(self._json) | {"added_tokens": []}))
        eos, num_tokens, own = int(packed.counts["eos_token_id"]), 0, set()
        for split in SPLITS:
            names = [*packed.names(f"{split}/rows-"), f"{split}/remainder.npy"]
            ids = np.concatenate([np.load(io.BytesIO(packed.read(storage, name))).reshape(-1) for name in names])
            expected: list[int] = []
            for name in curated.names(f"{split}/"):
                table = from_parquet(curated.read(storage, name))
                own |= {*zip(table["repository"].to_pylist(), table["path"].to_pylist(), strict=True)}
                for encoding in plain.encode_batch_fast(table["content"].to_pylist(), add_special_tokens=False):
                    expected += [*encoding.ids, eos]
            if not np.array_equal(ids, np.array(expected, ids.dtype)):
                raise Unequal(f"the tokens of {split}")
            num_tokens += len(ids)
        shutil.rmtree(recipe.storage.uri)
        _, kept, num_rows = self._peer()
        theirs = {(entry.repository, entry.path) for entry in self._entries if entry.location.decode() in kept}
        common = len(own & theirs) / len(own | theirs)
        if common < MIN_COMMON:
            raise Unequal(f"of all documents that one of both keeps, both keep {common:.1%}")
        return (
            f"{num_tokens:,} tokens of our rows, against tokenizers on the {len(own):,} documents that we keep of "
            f"{len(self._entries):,} ({self._mb:.0f} MB); the original keeps {len(theirs):,}, {common:.1%} in common, "
            f"in {num_rows:,} rows"
        )

    def ours(self) -> float:
        seconds, recipe = self._ours()
        shutil.rmtree(recipe.storage.uri)
        self._rates.append(self._mb / seconds)
        return self._rates[-1]

    def peer(self) -> float:
        return self._mb / self._peer()[0]

    def notes(self) -> list[str]:
        """What that is for each core, and what it would be for more of both."""
        rate = statistics.median(self._rates) / (os.cpu_count() or 1)  # MB/s, the start of the stages included
        columns = DOCUMENT_BYTES * len(self._entries) / self._mb / 1e6  # of the driver, for each byte of documents
        lines = [f"ours: {rate * SECONDS_PER_HOUR / 1000:.3g} GB/h per core"]
        for name, megabytes, num_cores in (("1 TB", 1e6, 100), ("1 PB", 1e9, 10_000)):
            hours = megabytes / (rate * num_cores) / SECONDS_PER_HOUR
            held = columns * megabytes / 1000
            lines.append(f"{name}: {hours:.2g} h on {num_cores:,} cores; columns of the driver {held:,.0f} GB")
        lines.append(
            f"assumed: a store that gives every core {rate:.3g} MB/s, near duplicates as frequent as here; "
            "where the columns exceed a machine, parts that are curated one after the other (near_dedup.against)"
        )
        return lines


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as name, ray_session():
        yield _Prep(Path(name), SAMPLE_BYTES // (20 if trial else 1))


BENCHMARK = Benchmark(
    title="raw files to packed rows, MB/s on two cores, against the original's algorithm",
    unit="MB/s",
    peer=f"datasets.map, datasketch, tokenizers ({installed('datasets')}, {installed('datasketch')})",
    ratio="ours / peer",
    target=Target(">=", 25, 50),
    comparison=_comparison,
)
