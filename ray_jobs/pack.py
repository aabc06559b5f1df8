"""Curated documents to packed rows: encode every shard, plan where each piece of a document goes, write the rows.

The driver sees the lengths of all documents, four bytes for each, and the tasks (`ray_jobs.pack_shard`) their texts and
tokens. The encoded shards are intermediate: no manifest names them, so committing removes them.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np

from codeparrot.config import Recipe
from codeparrot.errors import EmptyCorpusError
from codeparrot.forgotten import forgotten
from codeparrot.manifest import File, Manifest, canonical
from codeparrot.packing import Ledger, Plan, plan, token_dtype
from codeparrot.provenance import write_version
from codeparrot.splits import SPLITS
from codeparrot.storage import open_storage, sha256_hex
from codeparrot.tokenizer import Encoder
from ray_jobs.cluster import spread
from ray_jobs.pack_shard import Encoded, Pieces, Rows, Target, Written, encode_shard, write_rows
from ray_jobs.stage import Output, Stage, Work, main, stage_settings


def run(work: Work) -> Output:
    """Pack both splits; the ledger of each must balance."""
    tokenizer = work.inputs["tokenizer"]
    tokenizer_json = tokenizer.read(work.storage, "tokenizer.json").decode()
    encoder, settings = Encoder(tokenizer_json), work.recipe.pack
    dtype = token_dtype(encoder.vocab_size)
    rows_per_shard = max(1, settings.shard_bytes // (settings.max_seq_len * dtype.itemsize))
    files: list[File] = []
    ledgers, held = {}, {}
    histogram: Counter[int] = Counter()
    num_forgotten = 0
    for split in SPLITS:
        encoded = _encode(work, split, tokenizer_json)
        for shard in encoded:
            histogram.update(1 << (length - 1).bit_length() for length in shard.lengths.tolist())
        num_forgotten += sum(shard.num_forgotten for shard in encoded)
        rows = Rows(
            split=split,
            paths=[shard.path for shard in encoded],
            max_seq_len=settings.max_seq_len,
            dtype=dtype.str,
            eos_token_id=encoder.eos_token_id,
            newlines=encoder.token_newlines(),
        )
        written, rest = _write(work, encoded, rows, rows_per_shard)
        files += [file for each in (*written, *rest) for file in each.files]
        ledgers[split] = asdict(_ledger(encoded, written, rest, settings.max_seq_len))
        held[split] = [each.held for each in written]
    counts = {
        "strategy": settings.strategy,
        "max_seq_len": settings.max_seq_len,
        "rows_per_shard": rows_per_shard,
        "vocab_size": encoder.vocab_size,
        "eos_token_id": encoder.eos_token_id,
        "dtype": dtype.name,
        "splits": ledgers,
        "documents_forgotten": num_forgotten,
        "document_tokens_histogram": {str(limit): histogram[limit] for limit in sorted(histogram)},
    }
    write_version(work.storage, work.attempt.manifest(files, counts), held)
    return files, counts


def plan_inputs(recipe: Recipe) -> tuple[str, frozenset[str]]:
    """The repositories that must not be learned from."""
    names = forgotten(open_storage(recipe.storage.uri))
    return sha256_hex(canonical(sorted(names))) if names else "", names


def _encode(work: Work, split: str, tokenizer_json: str) -> list[Encoded]:
    curated = work.inputs["curated"]
    encode = partial(
        encode_shard,
        uri=work.storage.uri,
        folder=f"{work.attempt.folder}/encoded",
        curated=curated,
        tokenizer_json=tokenizer_json,
        forgotten=work.plan,
    )
    return spread(f"pack: encode {split}", curated.names(f"{split}/"), encode)


def _write(
    work: Work, encoded: Sequence[Encoded], rows: Rows, rows_per_shard: int
) -> tuple[list[Written], list[Written]]:
    """What was written of rows, and of the remainder."""
    settings = work.recipe.pack
    lengths = np.concatenate([np.empty(0, np.int64), *(shard.lengths for shard in encoded)])
    planned = plan(lengths, max_seq_len=settings.max_seq_len, strategy=settings.strategy)
    if lengths.sum() < settings.max_seq_len:
        raise EmptyCorpusError(
            f"the {rows.split} split has {lengths.sum():,} tokens, less than one row of {settings.max_seq_len}; add "
            "code or lower pack.max_seq_len"
        )
    targets, rest = _targets(planned, encoded, settings.max_seq_len, rows_per_shard)
    write = partial(write_rows, uri=work.storage.uri, folder=work.attempt.folder, rows=rows)
    return spread(f"pack: write {rows.split}", targets, write), [write(target) for target in rest]


def _targets(
    planned: Plan, encoded: Sequence[Encoded], max_seq_len: int, rows_per_shard: int
) -> tuple[list[Target], list[Target]]:
    """The packed shards to be written, and the remainder if there is one."""
    sizes = np.array([len(shard.lengths) for shard in encoded], dtype=np.int64)
    lengths = np.concatenate([shard.lengths for shard in encoded]).astype(np.int64)
    shard = np.repeat(np.arange(len(encoded)), sizes)
    first_document = (np.cumsum(sizes) - sizes)[shard]
    first_token = np.cumsum(lengths) - lengths

    def pieces(here: slice) -> Pieces:
        document = planned.document[here]
        return Pieces(
            shard=shard[document],
            document=document - first_document[document],
            begin=first_token[document] - first_token[first_document[document]],
            start=planned.start[here],
            length=planned.length[here],
            row=planned.row[here],
            offset=planned.offset[here],
        )

    targets = []
    for index, first in enumerate(range(0, planned.num_rows, rows_per_shard)):
        stop = min(first + rows_per_shard, planned.num_rows)
        targets.append(Target(index, first, (stop - first) * max_seq_len, pieces(planned.rows(first, stop))))
    left = planned.rows(planned.num_rows, planned.num_rows + 1)
    size = int(planned.length[left].sum())
    return targets, [Target(None, planned.num_rows, size, pieces(left))] if size else []


def _ledger(
    encoded: Sequence[Encoded], written: Sequence[Written], rest: Sequence[Written], max_seq_len: int
) -> Ledger:
    """Counted from what was written, not from the plan, so that it can catch a wrong one."""
    num_rows = sum(each.num_rows for each in written)
    tokens_in_rows = sum(each.num_tokens for each in written)
    ledger = Ledger(
        tokens_in=sum(int(shard.lengths.sum()) for shard in encoded),
        tokens_in_rows=tokens_in_rows,
        tokens_remainder=sum(each.num_tokens for each in rest),
        num_rows=num_rows,
        num_documents=sum(len(shard.lengths) for shard in encoded),
        size_bytes=sum(shard.size_bytes for shard in encoded),
        tokens_padding=num_rows * max_seq_len - tokens_in_rows,
    )
    return ledger.check(max_seq_len)


def summary(manifest: Manifest) -> tuple[str, str]:
    """Tokens in; rows, and what is over or how full they are."""
    splits: Any = manifest.counts["splits"].values()
    tokens, in_rows, rows, rest = (
        sum(split[key] for split in splits) for key in ("tokens_in", "tokens_in_rows", "num_rows", "tokens_remainder")
    )
    max_seq_len = manifest.counts["max_seq_len"]
    over = f"{rest:,} tokens over"
    if manifest.counts["strategy"] == "best_fit":
        over = f"{in_rows / (rows * max_seq_len):.2%} full"
    return f"{tokens:,} tokens", f"{rows:,} rows of {max_seq_len}, {over}"


STAGE = Stage(
    makes="packed",
    inputs=("curated", "tokenizer"),
    settings=lambda recipe: stage_settings(recipe, "pack"),
    run=run,
    summary=summary,
    plan=plan_inputs,
)

if __name__ == "__main__":
    main("ray_jobs.pack")
