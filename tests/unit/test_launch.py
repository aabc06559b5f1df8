"""From a recipe to a training job: corpora that go together, and those that do not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codeparrot.config import Recipe, load_recipe
from codeparrot.errors import ManifestError
from codeparrot.launch import checkpoint_store, mixed_corpora, training_job
from codeparrot.manifest import Attempt, Manifest
from codeparrot.packing import to_npy
from codeparrot.storage import LocalStorage

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"


def pack(storage: LocalStorage, prefix: str, *, tokenizer: str = "t0", max_seq_len: int = 256) -> Manifest:
    attempt = Attempt(storage, "pack", prefix, {}, {"tokenizer": tokenizer}, "")
    files = [
        attempt.write(f"{split}/rows-00000.npy", to_npy(np.zeros((5, max_seq_len), dtype="<u2")))
        for split in ("train", "validation")
    ]
    counts: dict[str, Any] = {"max_seq_len": max_seq_len, "rows_per_shard": 5, "vocab_size": 8192, "eos_token_id": 0}
    splits = {split: {"num_rows": 5, "tokens_in": 5 * max_seq_len} for split in ("train", "validation")}
    return attempt.commit(files, counts | {"splits": splits})


def recipe(mixture: str) -> Recipe:
    return load_recipe(TINY, [f"train.mixture={mixture}"])


def test_corpora_with_the_same_tokenizer_are_mixed_by_weight(storage: LocalStorage) -> None:
    packed, _ = pack(storage, "packed"), pack(storage, "docs/packed")
    mixed = recipe("{packed: 3, docs/packed: 1}")
    others = mixed_corpora(mixed, storage)
    assert list(others) == ["docs/packed"]
    checkpoints = checkpoint_store(mixed, storage, packed, packed, others)
    job = training_job(mixed, storage, packed, packed, others, checkpoints)
    assert job.rows.num_rows == 10
    assert job.validation.num_rows == 5
    rows = job.rows.order(seed=0, window_shards=1).global_batch(0, 8)
    assert (rows < 5).sum() == 6
    assert "docs/packed" in checkpoints.identity.inputs


def test_without_a_mixture_there_is_only_the_runs_own_corpus(storage: LocalStorage) -> None:
    pack(storage, "packed")
    assert mixed_corpora(recipe("null"), storage) == {}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"tokenizer": "t1"}, "train.mixture: docs/packed was packed with another tokenizer than packed"),
        ({"max_seq_len": 128}, "train.mixture: the rows of docs/packed have another length than those of packed"),
    ],
)
def test_corpora_that_do_not_go_together_are_refused(
    storage: LocalStorage, other: dict[str, Any], message: str
) -> None:
    pack(storage, "packed")
    pack(storage, "docs/packed", **other)
    with pytest.raises(ManifestError, match=message):
        mixed_corpora(recipe("{packed: 3, docs/packed: 1}"), storage)


def test_a_corpus_that_is_not_there_names_the_stage_that_makes_it(storage: LocalStorage) -> None:
    pack(storage, "packed")
    with pytest.raises(ManifestError, match=r"docs/packed has no manifest.json; run `python -m ray_jobs.pack`"):
        mixed_corpora(recipe("{packed: 3, docs/packed: 1}"), storage)
