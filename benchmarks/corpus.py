"""Packed rows of real code in an S3 store, as the stages before training leave them, made without Ray.

The code is that of installed packages. Store and rows lie in `.codeparrot/bench` and are made once for the same
settings.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from codeparrot import local_store
from codeparrot.config import Recipe, load_recipe
from codeparrot.manifest import Attempt, File, Manifest, canonical, load_manifest
from codeparrot.packing import Ledger, encode_documents, to_npy, token_dtype
from codeparrot.storage import Storage, open_storage, sha256_hex
from codeparrot.tokenizer import Encoder, tokenizer_files, train_tokenizer
from ray_jobs.local import SHADOWING

ROOT = Path(__file__).parents[1]
STATE = ROOT / ".codeparrot" / "bench"
BUCKET = "codeparrot"
RECIPE = "recipes/tiny.yaml"
PACKAGES = ("sympy", "numpy", "networkx", "matplotlib", "pandas")
MAX_BYTES = 28_000_000
"""About as much as the tiny recipe trains on."""
NUM_VALIDATION = 50


@dataclass(frozen=True)
class Corpus:
    """A store with packed rows and their tokenizer. The environment names the store."""

    uri: str
    packed: Manifest
    tokenizer: Manifest

    @property
    def storage(self) -> Storage:
        """The store."""
        return open_storage(self.uri)

    def arguments(self, run_name: str, overrides: Sequence[str]) -> list[str]:
        """The command line of a run of the tiny recipe on these rows."""
        settings = [f"storage.uri={self.uri}", f"run_name={run_name}", *overrides]
        return ["--config", RECIPE, *(word for setting in settings for word in ("--set", setting))]

    def recipe(self, run_name: str, *overrides: str) -> Recipe:
        """The same as a recipe."""
        return load_recipe(ROOT / RECIPE, [f"storage.uri={self.uri}", f"run_name={run_name}", *overrides])

    def forget(self, run_name: str) -> None:
        """Delete what a run has left in the store."""
        self.storage.delete([path for path, _ in self.storage.list(f"runs/{run_name}/")])


@contextlib.contextmanager
def corpus() -> Iterator[Corpus]:
    """The store with the corpus, for the length of a `with` block."""
    with local_store.running(STATE / "store", BUCKET) as store:
        for name in SHADOWING:
            os.environ.pop(name, None)
        os.environ.update(store.environment(), NO_PROXY="127.0.0.1,localhost", no_proxy="127.0.0.1,localhost")
        os.environ.setdefault("CODEPARROT_CACHE", str(STATE / "cache"))
        recipe = load_recipe(ROOT / RECIPE)
        settings = {
            "packages": [f"{name}=={version(name)}" for name in PACKAGES],
            "max_bytes": MAX_BYTES,
            "vocab_size": recipe.tokenizer.vocab_size,
            "pack": recipe.pack.model_dump(mode="json"),
        }
        uri = f"s3://{BUCKET}/bench-{sha256_hex(canonical(settings))[:12]}"
        storage = open_storage(uri)
        packed = load_manifest(storage, "packed")
        if packed is None:
            packed = _make(storage, settings)
        tokenizer = load_manifest(storage, "tokenizer")
        assert tokenizer is not None
        yield Corpus(uri, packed, tokenizer)


def _origin(package: str) -> str:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


def documents() -> list[str]:
    """Source files of installed packages, in a fixed order, up to MAX_BYTES of them."""
    texts: list[str] = []
    room = MAX_BYTES
    for package in PACKAGES:
        for path in sorted(Path(_origin(package)).parent.rglob("*.py")):
            text = path.read_text("utf-8", "replace")
            if text and room > 0:
                texts.append(text)
                room -= len(text)
    return texts


def trained_on(texts: Sequence[str]) -> Sequence[str]:
    """Those of the documents whose rows are trained on; the first ones are for validation."""
    return texts[NUM_VALIDATION:]


def _make(storage: Storage, settings: dict[str, Any]) -> Manifest:
    """Tokenizer and packed rows, each under its manifest; that of the rows comes last."""
    texts = documents()
    tokenizer_json = train_tokenizer([text.encode() for text in texts], settings["vocab_size"])
    max_seq_len = settings["pack"]["max_seq_len"]
    attempt = Attempt(storage, "train_tokenizer", "tokenizer", settings, {}, "benchmarks")
    files = [attempt.write(name, data) for name, data in tokenizer_files(tokenizer_json, max_seq_len).items()]
    attempt.commit(files, {"vocab_size": settings["vocab_size"]})
    encoder = Encoder(tokenizer_json, check=texts)
    rows_per_shard = settings["pack"]["shard_bytes"] // (max_seq_len * token_dtype(encoder.vocab_size).itemsize)
    attempt = Attempt(storage, "pack", "packed", settings, {}, "benchmarks")
    files, ledgers = [], {}
    for split, part in (("train", trained_on(texts)), ("validation", texts[:NUM_VALIDATION])):
        tokens, _ = encode_documents(part, encoder)
        whole = len(tokens) // max_seq_len * max_seq_len
        rows, rest = tokens[:whole].reshape(-1, max_seq_len), tokens[whole:]
        files += _shards(attempt, split, rows, rows_per_shard)
        files.append(attempt.write(f"{split}/remainder.npy", to_npy(rest)))
        size = sum(len(text.encode()) for text in part)
        ledgers[split] = asdict(
            Ledger(len(tokens), rows.size, len(rest), len(rows), len(part), size).check(max_seq_len)
        )
    counts = {
        "max_seq_len": max_seq_len,
        "rows_per_shard": rows_per_shard,
        "vocab_size": encoder.vocab_size,
        "eos_token_id": encoder.eos_token_id,
        "dtype": token_dtype(encoder.vocab_size).name,
        "splits": ledgers,
    }
    return attempt.commit(files, counts)


def _shards(attempt: Attempt, split: str, rows: Any, rows_per_shard: int) -> list[File]:
    parts = np.split(rows, range(rows_per_shard, len(rows), rows_per_shard))
    return [attempt.write(f"{split}/rows-{index:05d}.npy", to_npy(part)) for index, part in enumerate(parts)]
