"""The stage without Ray: one task that holds all of the text, and words counted shard by shard, learn the same."""

from collections.abc import Sequence
from pathlib import Path
from unittest.mock import patch

import pytest
import tokenizers

from codeparrot.config import load_recipe
from codeparrot.documents import make_document, to_parquet, to_table
from codeparrot.errors import TokenizerError
from codeparrot.lease import Lease
from codeparrot.manifest import Attempt, Manifest
from codeparrot.storage import LocalStorage
from ray_jobs import train_tokenizer
from ray_jobs.stage import Work
from tests.unit.packed_store import RECIPE, backwards, commit

NEW_LETTERS = '    "\U00016ebb",\n    "\U00016ebc",\n' * 9
NUM_SHARDS = 20


@pytest.fixture(scope="module")
def texts() -> list[str]:
    paths = sorted(Path(tokenizers.__file__).parent.rglob("*.py*"))
    found = [path.read_text("utf-8") for path in paths if path.suffix in (".py", ".pyi")]
    return [*found, NEW_LETTERS, "x = 1\n"]


def curated(storage: LocalStorage, texts: Sequence[str]) -> Manifest:
    documents = [
        make_document(text.encode(), source="test", repository="one", path=f"{number}.py", revision="r", license="MIT")
        for number, text in enumerate(texts)
    ]
    shards = {f"train/part-{index:05d}.parquet": documents[index::NUM_SHARDS] for index in range(NUM_SHARDS)}
    files = {name: to_parquet(to_table(shard)) for name, shard in shards.items()}  # type: ignore[arg-type]
    files["validation/part-00000.parquet"] = files["train/part-00000.parquet"]
    size = sum(len(text.encode()) for text in texts)
    return commit(storage, "curate", "curated", files, {"splits": {"train": {"size_bytes": size}}})


def learn(storage: LocalStorage, made: Manifest, *settings: str) -> Manifest:
    recipe = load_recipe(RECIPE, [f"storage.uri={storage.uri}", *settings])
    attempt = Attempt(storage, "train_tokenizer", "tokenizer", {}, {}, "")
    work = Work(recipe, storage, attempt, {"curated": made}, None, Lease(storage, "tokenizer"))
    with patch.object(train_tokenizer, "spread", without_ray):
        return attempt.commit(*train_tokenizer.run(work))


def without_ray(stage: str, items: list[object], work: object, unit: str = "", kept: object = None) -> list[object]:
    return backwards(stage, items, work)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", ["1_000_000_000", "30_000"])
def test_counting_shard_by_shard_changes_nothing(tmp_path: Path, texts: list[str], share: str) -> None:
    storage = LocalStorage(str(tmp_path))
    made = curated(storage, texts)
    settings = ["tokenizer.vocab_size=600", f"tokenizer.max_training_bytes={share}"]
    at_once = learn(storage, made, *settings)
    with patch.object(train_tokenizer, "_train", side_effect=AssertionError("it should not be held at once")):
        by_shard = learn(storage, made, *settings, "tokenizer.max_bytes_in_memory=1000")
    assert by_shard.digest == at_once.digest
    left = [path for path, _ in storage.list("tokenizer/") if "words" in path]
    assert left == [], "counts are intermediate"


def test_a_counted_corpus_too_small_for_the_vocabulary_is_an_error(tmp_path: Path) -> None:
    storage = LocalStorage(str(tmp_path))
    made = curated(storage, ["abab"])
    with pytest.raises(TokenizerError, match="20000 tokens asked for, but the corpus of 4 bytes supports only 259;"):
        learn(storage, made, "tokenizer.vocab_size=20000", "tokenizer.max_bytes_in_memory=1")
