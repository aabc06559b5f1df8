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
from codeparrot.errors import EmptyCorpusError, LedgerError
from codeparrot.forgotten import forgotten
from codeparrot.infilling import Infilling
from codeparrot.manifest import Manifest, canonical
from codeparrot.objectives import InfillSettings, identity_of
from codeparrot.packing import Ledger, PackSettings, plan, token_dtype
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
    infilling = infilling_of(work.recipe)
    encoded = _encode(work, tokenizer_json, infilling)
    targets = [target for split in SPLITS for target in _targets(split, encoded[split], settings, rows_per_shard)]
    rows = Rows(
        paths={split: [shard.path for shard in shards] for split, shards in encoded.items()},
        max_seq_len=settings.max_seq_len,
        dtype=dtype.str,
        eos_token_id=encoder.eos_token_id,
        padded=settings.strategy == "best_fit",
        newlines=encoder.token_newlines(),
        sizes=encoder.token_bytes() if infilling else None,
    )
    write = partial(write_rows, uri=work.storage.uri, folder=work.attempt.folder, rows=rows)
    written = spread("pack: write", targets, write, kept=work.kept)
    files = [file for each in written for file in each.files]
    ledgers, held = {}, {}
    for split in SPLITS:
        here = [each for each in written if each.split == split]
        ledgers[split] = asdict(_ledger(encoded[split], here, settings.max_seq_len))
        if infilling:
            _require_all_text(ledgers[split]["size_bytes"], sum(each.num_bytes for each in here))
            ledgers[split]["documents_rearranged"] = sum(shard.num_rearranged for shard in encoded[split])
            ledgers[split]["tokens_marks"] = sum(shard.num_marks for shard in encoded[split])
        held[split] = [each.held for each in here if each.num_rows]
    lengths = np.concatenate([shard.lengths for split in SPLITS for shard in encoded[split]])
    histogram = Counter(1 << (length - 1).bit_length() for length in lengths.tolist())
    num_forgotten = sum(shard.num_forgotten for split in SPLITS for shard in encoded[split])
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


def infilling_of(recipe: Recipe) -> Infilling | None:
    """How the train split's documents are rearranged; the validation split's never are."""
    if not isinstance(recipe.objective, InfillSettings):
        return None
    return Infilling(recipe.objective, recipe.seed, recipe.pack.max_seq_len)


def _require_all_text(size_bytes: int, num_bytes: int) -> None:
    """Raise LedgerError unless all text is in the rows and the remainder."""
    if size_bytes != num_bytes:
        raise LedgerError(f"of {size_bytes:,} bytes of text, {num_bytes:,} are in rows; nothing was committed")


def plan_inputs(recipe: Recipe) -> tuple[str, frozenset[str]]:
    """The repositories that must not be learned from."""
    names = forgotten(open_storage(recipe.storage.uri))
    return sha256_hex(canonical(sorted(names))) if names else "", names


def _encode(work: Work, tokenizer_json: str, infilling: Infilling | None) -> dict[str, list[Encoded]]:
    """The encoded shards of both splits."""
    curated = work.inputs["curated"]
    encode = partial(
        encode_shard,
        uri=work.storage.uri,
        folder=f"{work.attempt.folder}/encoded",
        curated=curated,
        tokenizer_json=tokenizer_json,
        forgotten=work.plan,
        infilling=infilling,
    )
    names = [name for split in SPLITS for name in curated.names(f"{split}/")]
    encoded = dict(zip(names, spread("pack: encode", names, encode, kept=work.kept), strict=True))
    return {split: [encoded[name] for name in curated.names(f"{split}/")] for split in SPLITS}


def _targets(split: str, encoded: Sequence[Encoded], settings: PackSettings, rows_per_shard: int) -> list[Target]:
    """The packed shards of a split, and the remainder if there is one. Raises EmptyCorpusError."""
    max_seq_len = settings.max_seq_len
    sizes = np.array([len(shard.lengths) for shard in encoded], dtype=np.int64)
    lengths = np.concatenate([np.empty(0, np.int64), *(shard.lengths for shard in encoded)])
    if lengths.sum() < max_seq_len:
        raise EmptyCorpusError(
            f"the {split} split has {lengths.sum():,} tokens, less than one row of {max_seq_len}; add code or lower "
            "pack.max_seq_len"
        )
    planned = plan(lengths, max_seq_len=max_seq_len, strategy=settings.strategy)
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
        here = planned.rows(first, stop)
        targets.append(Target(split, index, first, (stop - first) * max_seq_len, pieces(here)))
    rest = planned.rows(planned.num_rows, planned.num_rows + 1)
    size = int(planned.length[rest].sum())
    return [*targets, Target(split, None, planned.num_rows, size, pieces(rest))] if size else targets


def _ledger(encoded: Sequence[Encoded], written: Sequence[Written], max_seq_len: int) -> Ledger:
    """Counted from what was written, not from the plan, so that it can catch a wrong one."""
    num_rows = sum(each.num_rows for each in written)
    tokens_in_rows = sum(each.num_tokens for each in written if each.num_rows)
    ledger = Ledger(
        tokens_in=sum(int(shard.lengths.sum()) for shard in encoded),
        tokens_in_rows=tokens_in_rows,
        tokens_remainder=sum(each.num_tokens for each in written if not each.num_rows),
        num_rows=num_rows,
        num_documents=sum(shard.num_documents for shard in encoded),
        size_bytes=sum(shard.size_bytes for shard in encoded),
        tokens_padding=num_rows * max_seq_len - tokens_in_rows,
    )
    return ledger.check(max_seq_len)


def pack_settings(recipe: Recipe) -> dict[str, Any]:
    """What the rows depend on: also on the objective and the seed, if that rearranges documents."""
    if infilling_of(recipe) is None:
        return stage_settings(recipe, "pack")
    return {**stage_settings(recipe, "pack", "seed"), **identity_of(recipe.objective)}


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
    settings=pack_settings,
    run=run,
    summary=summary,
    plan=plan_inputs,
)

if __name__ == "__main__":
    main("ray_jobs.pack")
