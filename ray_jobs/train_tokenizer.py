"""Curated documents to a byte-level BPE tokenizer, and a report of what it learned."""

from collections import Counter
from functools import partial
from typing import Any

from codeparrot.documents import from_parquet
from codeparrot.draws import uniform
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.storage import open_storage
from codeparrot.tokenizer import (
    Encoder,
    TokenizerSettings,
    describe,
    gpt2_encoder,
    tokenizer_files,
    train_tokenizer,
)
from ray_jobs.cluster import spread
from ray_jobs.stage import Output, Stage, Work, main, stage_settings


def run(work: Work) -> Output:
    """Train on the train split, then count the validation split's tokens shard by shard."""
    curated, recipe = work.inputs["curated"], work.recipe
    train = partial(
        _train,
        uri=work.storage.uri,
        folder=work.attempt.folder,
        curated=curated,
        settings=recipe.tokenizer,
        seed=recipe.seed,
        max_seq_len=recipe.pack.max_seq_len,
    )
    tokenizer_json, files = spread("train_tokenizer", [curated.names("train/")], train, unit="tokenizers")[0]
    count = partial(_count_tokens, uri=work.storage.uri, curated=curated, tokenizer_json=tokenizer_json)
    totals: Counter[str] = Counter()
    for counts in spread("train_tokenizer: report", curated.names("validation/"), count):
        totals.update(counts)
    report = describe(tokenizer_json) | {
        "characters_per_token": totals["characters"] / totals["tokens"],
        "gpt2_characters_per_token": totals["characters"] / totals["gpt2_tokens"],
    }
    return files, report


def _train(
    names: list[str],
    *,
    uri: str,
    folder: str,
    curated: Manifest,
    settings: TokenizerSettings,
    seed: int,
    max_seq_len: int,
) -> tuple[str, list[File]]:
    storage = open_storage(uri)
    counts: Any = curated.counts["splits"]["train"]
    share = settings.max_training_bytes / max(1, counts["size_bytes"])
    texts: list[bytes] = []
    for name in names:
        rows = from_parquet(curated.read(storage, name), ["content", "sha256"]).to_pylist()
        chosen = (row for row in rows if share >= 1 or uniform(seed, "tokenizer", row["sha256"]) < share)
        texts += [row["content"].encode() for row in chosen]
    tokenizer_json = train_tokenizer(texts, settings.vocab_size)
    named = tokenizer_files(tokenizer_json, max_seq_len)
    return tokenizer_json, [write_file(storage, folder, name, data) for name, data in named.items()]


def _count_tokens(name: str, *, uri: str, curated: Manifest, tokenizer_json: str) -> Counter[str]:
    texts = from_parquet(curated.read(open_storage(uri), name), ["content"])["content"].to_pylist()
    encoder = Encoder(tokenizer_json, check=texts)
    return Counter(
        characters=sum(map(len, texts)),
        tokens=int(encoder.encode(texts)[1].sum()),
        gpt2_tokens=int(gpt2_encoder().encode(texts)[1].sum()),
    )


def summary(manifest: Manifest) -> tuple[str, str]:
    """The vocabulary; characters per token against GPT-2's."""
    counts: Any = manifest.counts
    ours, theirs = counts["characters_per_token"], counts["gpt2_characters_per_token"]
    return (f"{counts['vocab_size']:,} tokens", f"{ours:.2f} characters/token (GPT-2: {theirs:.2f})")


STAGE = Stage(
    makes="tokenizer",
    inputs=("curated",),
    settings=lambda recipe: stage_settings(recipe, "seed", "tokenizer") | {"max_seq_len": recipe.pack.max_seq_len},
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.train_tokenizer")
