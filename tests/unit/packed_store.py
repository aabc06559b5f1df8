"""A store whose rows are packed as the pack stage does it, but for Ray."""

from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

from codeparrot.config import Recipe, load_recipe
from codeparrot.documents import make_document, to_parquet, to_table
from codeparrot.lease import Lease
from codeparrot.manifest import Attempt, Manifest, require_manifest
from codeparrot.storage import Storage
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from ray_jobs import pack
from ray_jobs.stage import Work

Text = tuple[str, str, str]
"""(repository, path, content)"""
MAX_SEQ_LEN = 8
RECIPE = "recipes/tiny.yaml"
TOKENIZER = train_tokenizer([b"abab\n\n\n\n  ab" * 9], 262)


def recipe(storage: Storage, *overrides: str) -> Recipe:
    """Rows of 8 tokens, three to a shard."""
    settings = ["pack.max_seq_len=8", "pack.shard_bytes=48", "generate.max_new_tokens=4", f"storage.uri={storage.uri}"]
    return load_recipe(RECIPE, [*settings, *overrides])


def commit(storage: Storage, stage: str, prefix: str, files: dict[str, bytes], counts: dict[str, Any]) -> Manifest:
    """An output of files."""
    attempt = Attempt(storage, stage, prefix, {}, {}, "")
    return attempt.commit([attempt.write(name, data) for name, data in files.items()], counts)


def curate(storage: Storage, shards: Sequence[Sequence[Text]], validation: Sequence[Text]) -> None:
    """Curated documents, by shard, their tokenizer, and what a raw manifest says of them."""
    files = {}
    parts = {f"train/part-{index:05d}.parquet": shard for index, shard in enumerate(shards)}
    for name, texts in (parts | {"validation/part-00000.parquet": validation}).items():
        made = [
            make_document(text.encode(), source="test", repository=repository, path=path, revision="r1", license="MIT")
            for repository, path, text in texts
        ]
        files[name] = to_parquet(to_table(made))  # type: ignore[arg-type]
    commit(storage, "curate", "curated", files, {})
    commit(storage, "train_tokenizer", "tokenizer", tokenizer_files(TOKENIZER, MAX_SEQ_LEN), {})
    names = {repository for shard in (*shards, validation) for repository, _, _ in shard}
    commit(storage, "collect", "raw", {}, {"by_repository": {key: {} for key in names}})


def pack_all(storage: Storage, settings: Recipe) -> Manifest:
    """Pack and commit."""
    work = work_of(storage, settings)
    with patch.object(pack, "spread", backwards):
        return work.attempt.commit(*pack.run(work))


def backwards(stage: str, items: Sequence[Any], work: Callable[[Any], Any], kept: Any = None) -> list[Any]:
    """The tasks that Ray would run side by side, the last one first."""
    return [work(item) for item in reversed(items)][::-1]


def work_of(storage: Storage, settings: Recipe) -> Work:
    """What the pack stage is given to do."""
    inputs = {noun: require_manifest(storage, noun, "") for noun in pack.STAGE.inputs}
    digests = {noun: manifest.digest for noun, manifest in inputs.items()}
    digests["plan"], forgotten = pack.plan_inputs(settings)
    attempt = Attempt(storage, "pack", "packed", pack.STAGE.settings(settings), digests, pack.STAGE.code)
    return Work(settings, storage, attempt, inputs, forgotten, Lease(storage, "packed"))
