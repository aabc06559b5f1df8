"""Curated documents to a byte-level BPE tokenizer, and a report of what it learned.

One task learns from all of the text, or, where that is more than a machine should hold, from the counts of its words:
every shard's are counted by a task of its own, and added up by others, eight tables at a time. The merges are the same.
The tables are intermediate: no manifest names them, so committing removes them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from codeparrot.config import Recipe
from codeparrot.documents import from_parquet, to_parquet
from codeparrot.draws import uniform
from codeparrot.manifest import Manifest
from codeparrot.objectives import special_tokens
from codeparrot.storage import open_storage
from codeparrot.tokenizer import (
    Encoder,
    describe,
    gpt2_encoder,
    tokenizer_files,
    train_on_words,
    train_tokenizer,
)
from codeparrot.words import add_up, count_words
from ray_jobs.cluster import spread
from ray_jobs.stage import Output, Stage, Work, main, stage_settings

NUM_ADDED_UP = 8
"""Tables of counts that a task holds at once."""


def run(work: Work) -> Output:
    """Train on the train split, then count the validation split's tokens shard by shard."""
    curated, settings = work.inputs["curated"], work.recipe.tokenizer
    size = curated.counts["splits"]["train"]["size_bytes"]
    share = settings.max_training_bytes / max(1, size)
    special = special_tokens(work.recipe.objective, work.recipe.pack.max_seq_len)
    source = Source(work.storage.uri, curated, share, work.recipe.seed)
    names = curated.names("train/")
    if min(size, settings.max_training_bytes) > settings.max_bytes_in_memory:
        counts_of = _counted(names, source, work)
        learn = partial(_learn, uri=source.uri, vocab_size=settings.vocab_size, special=special)
        tokenizer_json = spread("train_tokenizer: learn", [counts_of], learn, unit="tokenizers", kept=work.kept)[0]
    else:
        train = partial(_train, source=source, vocab_size=settings.vocab_size, special=special)
        tokenizer_json = spread("train_tokenizer", [names], train, unit="tokenizers", kept=work.kept)[0]
    named = tokenizer_files(tokenizer_json, work.recipe.pack.max_seq_len)
    files = [work.attempt.write(name, data) for name, data in named.items()]
    count = partial(_count_tokens, uri=work.storage.uri, curated=curated, tokenizer_json=tokenizer_json)
    totals: Counter[str] = Counter()
    for counts in spread("train_tokenizer: report", curated.names("validation/"), count, kept=work.kept):
        totals.update(counts)
    report = describe(tokenizer_json) | {
        "characters_per_token": totals["characters"] / totals["tokens"],
        "gpt2_characters_per_token": totals["characters"] / totals["gpt2_tokens"],
    }
    return files, report


@dataclass(frozen=True)
class Source:
    """The text to learn from."""

    uri: str
    curated: Manifest
    share: float
    """Of the documents; 1 and more: all."""
    seed: int

    def texts(self, name: str) -> list[bytes]:
        """Those of one shard."""
        table = from_parquet(self.curated.read(open_storage(self.uri), name), ["content", "sha256"])
        texts: list[bytes] = table["content"].cast("binary").to_pylist()
        if self.share >= 1:
            return texts
        draws = (uniform(self.seed, "tokenizer", sha256) for sha256 in table["sha256"].to_pylist())
        return [text for text, draw in zip(texts, draws, strict=True) if draw < self.share]


def _train(names: Sequence[str], *, source: Source, vocab_size: int, special: Sequence[str]) -> str:
    return train_tokenizer([text for name in names for text in source.texts(name)], vocab_size, special)


def _counted(names: Sequence[str], source: Source, work: Work) -> str:
    """Where the counts of all shards lie."""
    folder = f"{work.attempt.folder}/words"
    count = partial(_count, source=source, folder=folder)
    paths = spread("train_tokenizer: count", list(enumerate(names)), count, kept=work.kept)
    level = 0
    while len(paths) > 1:
        level += 1
        groups = [paths[start : start + NUM_ADDED_UP] for start in range(0, len(paths), NUM_ADDED_UP)]
        add = partial(_add_up, uri=source.uri, folder=f"{folder}/added-{level}")
        paths = spread("train_tokenizer: add up", list(enumerate(groups)), add, unit="tables")
    return paths[0]


def _count(item: tuple[int, str], *, source: Source, folder: str) -> str:
    number, name = item
    return _store(count_words(source.texts(name)), source.uri, f"{folder}/{number:05d}.parquet")


def _add_up(item: tuple[int, Sequence[str]], *, uri: str, folder: str) -> str:
    number, paths = item
    storage = open_storage(uri)
    return _store(add_up([from_parquet(storage.read(path)) for path in paths]), uri, f"{folder}/{number:05d}.parquet")


def _store(counts: Any, uri: str, path: str) -> str:
    open_storage(uri).write(path, to_parquet(counts))
    return path


def _learn(path: str, *, uri: str, vocab_size: int, special: Sequence[str]) -> str:
    return train_on_words(from_parquet(open_storage(uri).read(path)), vocab_size, special)


def _count_tokens(name: str, *, uri: str, curated: Manifest, tokenizer_json: str) -> Counter[str]:
    texts = from_parquet(curated.read(open_storage(uri), name), ["content"])["content"]
    encoder = Encoder(tokenizer_json, check=texts)
    return Counter(
        characters=sum(map(len, texts.to_pylist())),
        tokens=int(encoder.encode(texts)[1].sum()),
        gpt2_tokens=int(gpt2_encoder().encode(texts)[1].sum()),
    )


def tokenizer_settings(recipe: Recipe) -> dict[str, Any]:
    """What the tokenizer depends on."""
    max_seq_len = recipe.pack.max_seq_len
    special = special_tokens(recipe.objective, max_seq_len)
    return {
        **stage_settings(recipe, "seed", "tokenizer"),
        "max_seq_len": max_seq_len,
        **({"special_tokens": list(special)} if special else {}),
    }


def summary(manifest: Manifest) -> tuple[str, str]:
    """The vocabulary; characters per token against GPT-2's."""
    counts: Any = manifest.counts
    ours, theirs = counts["characters_per_token"], counts["gpt2_characters_per_token"]
    return (f"{counts['vocab_size']:,} tokens", f"{ours:.2f} characters/token (GPT-2: {theirs:.2f})")


STAGE = Stage(
    makes="tokenizer",
    inputs=("curated",),
    settings=tokenizer_settings,
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.train_tokenizer")
