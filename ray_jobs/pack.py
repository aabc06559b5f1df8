"""Curated documents to packed rows: encode every shard, then cut the whole sequence into rows.

The encoded shards are intermediate: no manifest names them, so committing removes them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from codeparrot.documents import from_parquet
from codeparrot.errors import EmptyCorpusError
from codeparrot.manifest import File, Manifest, write_file
from codeparrot.packing import Ledger, PackedShard, Piece, encode_documents, plan, to_npy, token_dtype
from codeparrot.splits import SPLITS
from codeparrot.storage import open_storage
from codeparrot.tokenizer import Encoder
from ray_jobs.cluster import spread
from ray_jobs.stage import Output, Stage, Work, main, stage_settings


@dataclass(frozen=True)
class Encoded:
    """One curated shard as tokens, stored under `path`."""

    path: str
    num_tokens: int
    num_documents: int
    size_bytes: int
    document_tokens: Counter[int]
    """How many documents have at most so many tokens (a power of two)."""


def run(work: Work) -> Output:
    """Pack both splits; the ledger of each must balance."""
    tokenizer = work.inputs["tokenizer"]
    tokenizer_json = tokenizer.read(work.storage, "tokenizer.json").decode()
    encoder = Encoder(tokenizer_json)
    max_seq_len = work.recipe.pack.max_seq_len
    row_bytes = max_seq_len * token_dtype(encoder.vocab_size).itemsize
    rows_per_shard = max(1, work.recipe.pack.shard_bytes // row_bytes)
    files: list[File] = []
    ledgers = {}
    histogram: Counter[int] = Counter()
    for split in SPLITS:
        encoded = _encode(work, split, tokenizer_json)
        for shard in encoded:
            histogram.update(shard.document_tokens)
        written, ledger = _cut(work, split, encoded, encoder.vocab_size, rows_per_shard)
        files += written
        ledgers[split] = asdict(ledger.check(max_seq_len))
    counts = {
        "max_seq_len": max_seq_len,
        "rows_per_shard": rows_per_shard,
        "vocab_size": encoder.vocab_size,
        "eos_token_id": encoder.eos_token_id,
        "dtype": token_dtype(encoder.vocab_size).name,
        "splits": ledgers,
        "document_tokens_histogram": {str(limit): histogram[limit] for limit in sorted(histogram)},
    }
    return files, counts


def _encode(work: Work, split: str, tokenizer_json: str) -> list[Encoded]:
    curated = work.inputs["curated"]
    encode = partial(
        _encode_shard,
        uri=work.storage.uri,
        folder=f"{work.attempt.folder}/encoded",
        curated=curated,
        tokenizer_json=tokenizer_json,
    )
    return spread(f"pack: encode {split}", curated.names(f"{split}/"), encode)


def _encode_shard(name: str, *, uri: str, folder: str, curated: Manifest, tokenizer_json: str) -> Encoded:
    storage = open_storage(uri)
    texts = from_parquet(curated.read(storage, name), ["content"])["content"].to_pylist()
    encoder = Encoder(tokenizer_json, check=texts)
    tokens = encode_documents(texts, encoder)
    lengths = np.diff(np.flatnonzero(tokens == encoder.eos_token_id), prepend=-1)
    path = f"{folder}/{name}.tokens"
    storage.write(path, tokens.tobytes())
    return Encoded(
        path=path,
        num_tokens=len(tokens),
        num_documents=len(texts),
        size_bytes=sum(len(text.encode()) for text in texts),
        document_tokens=Counter(1 << (int(length) - 1).bit_length() for length in lengths),
    )


def _cut(
    work: Work, split: str, encoded: Sequence[Encoded], vocab_size: int, rows_per_shard: int
) -> tuple[list[File], Ledger]:
    max_seq_len = work.recipe.pack.max_seq_len
    lengths = [shard.num_tokens for shard in encoded]
    packed, remainder = plan(lengths, max_seq_len=max_seq_len, rows_per_shard=rows_per_shard)
    if not packed:
        raise EmptyCorpusError(
            f"the {split} split has {sum(lengths):,} tokens, less than one row of {max_seq_len}; add code or lower "
            "pack.max_seq_len"
        )
    gather = partial(
        _write_rows,
        uri=work.storage.uri,
        folder=work.attempt.folder,
        split=split,
        paths=[shard.path for shard in encoded],
        max_seq_len=max_seq_len,
        vocab_size=vocab_size,
    )
    written = spread(f"pack: cut {split}", packed, gather)
    rest = _read_tokens(work.storage.uri, [shard.path for shard in encoded], remainder, vocab_size)
    files = [file for file, _ in written]
    files.append(work.attempt.write(f"{split}/remainder.npy", to_npy(rest)))
    # Counted from what was written, not from the plan, so that the ledger can catch a wrong plan.
    num_rows = sum(rows for _, rows in written)
    ledger = Ledger(
        tokens_in=sum(lengths),
        tokens_in_rows=num_rows * max_seq_len,
        tokens_remainder=len(rest),
        num_rows=num_rows,
        num_documents=sum(shard.num_documents for shard in encoded),
        size_bytes=sum(shard.size_bytes for shard in encoded),
    )
    return files, ledger


def _write_rows(
    shard: PackedShard, *, uri: str, folder: str, split: str, paths: Sequence[str], max_seq_len: int, vocab_size: int
) -> tuple[File, int]:
    rows = _read_tokens(uri, paths, shard.pieces, vocab_size).reshape(-1, max_seq_len)
    name = f"{split}/rows-{shard.index:05d}.npy"
    return write_file(open_storage(uri), folder, name, to_npy(rows)), len(rows)


def _read_tokens(uri: str, paths: Sequence[str], pieces: Sequence[Piece], vocab_size: int) -> Any:
    """The tokens of these pieces, in order: shape (tokens,)."""
    storage, dtype = open_storage(uri), token_dtype(vocab_size)
    parts = [
        np.frombuffer(
            storage.read(paths[piece.shard], piece.start * dtype.itemsize, piece.stop * dtype.itemsize), dtype
        )
        for piece in pieces
    ]
    return np.concatenate([np.empty(0, dtype), *parts])


def summary(manifest: Manifest) -> tuple[str, str]:
    """Tokens in; rows and remainder."""
    splits: Any = manifest.counts["splits"].values()
    tokens, rows, rest = (sum(split[key] for split in splits) for key in ("tokens_in", "num_rows", "tokens_remainder"))
    return f"{tokens:,} tokens", f"{rows:,} rows of {manifest.counts['max_seq_len']}, {rest:,} tokens over"


STAGE = Stage(
    makes="packed",
    inputs=("curated", "tokenizer"),
    settings=lambda recipe: stage_settings(recipe, "pack"),
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.pack")
