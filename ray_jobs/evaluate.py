"""A run to its measures on the validation split, beside plain compressors on the same bytes.

Batches are evaluated by Ray Data's tasks and summed in the order of the rows, so the figures do not depend on the
number of workers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from codeparrot.dataloader import PackedRows, batch_of, num_predicted
from codeparrot.evaluate import row_nll
from codeparrot.evaluate import spread as spread_rows
from codeparrot.manifest import Manifest
from codeparrot.metrics import gzip_bits_per_byte, measures, xz_bits_per_byte
from codeparrot.model import load_model
from codeparrot.storage import open_storage
from codeparrot.tokenizer import Encoder
from ray_jobs.cluster import spread
from ray_jobs.stage import Output, Stage, Work, main, stage_settings

if TYPE_CHECKING:
    import transformers

Kept = TypeVar("Kept")

EXPORT = "export/"
YARDSTICK_BYTES = 64_000_000  # xz -9 sees no further back than its dictionary of 64 MiB


def run(work: Work) -> Output:
    """Evaluate every chosen row once."""
    settings, packed, trained = work.recipe.evaluate, work.inputs["packed"], work.inputs["run"]
    rows = PackedRows(work.storage, packed, "validation")
    chosen = spread_rows(rows.num_rows, settings.max_rows)
    batches = [chosen[start : start + settings.batch_size] for start in range(0, len(chosen), settings.batch_size)]
    evaluate = partial(evaluate_rows, uri=work.storage.uri, packed=packed, trained=trained)
    results = spread(
        "evaluate", batches, evaluate, "batches", workers=settings.num_workers, resources=settings.resources_per_worker
    )
    encoder = Encoder(trained.read(work.storage, f"{EXPORT}tokenizer.json").decode())
    targets = rows.rows(chosen)[:, 1:]
    result = measures(
        math.fsum(nll for batch in results for nll in batch),
        num_tokens=num_predicted(rows, chosen),
        num_bytes=int(encoder.token_bytes()[targets].sum()),
    )
    text = text_of(rows, chosen, encoder)
    counts = {
        **asdict(result),
        "num_rows": len(chosen),
        "gzip_bits_per_byte": gzip_bits_per_byte(text),
        "xz_bits_per_byte": xz_bits_per_byte(text),
    }
    return [], counts


def evaluate_rows(indices: Sequence[int], *, uri: str, packed: Manifest, trained: Manifest) -> list[float]:
    """Summed negative log-likelihood of each of these rows, in nats."""
    import torch

    rows = _once("rows", uri, packed, lambda: PackedRows(open_storage(uri), packed, "validation"))
    with torch.inference_mode():
        return [float(nll) for nll in row_nll(exported_model(uri, trained), *batch_of(rows, indices))]


def exported_model(uri: str, trained: Manifest) -> "transformers.PreTrainedModel":
    """The model of a run, loaded once per process."""

    def load() -> "transformers.PreTrainedModel":
        storage = open_storage(uri)
        return load_model({name.removeprefix(EXPORT): trained.read(storage, name) for name in trained.names(EXPORT)})

    return _once("model", uri, trained, load)


_kept: dict[str, tuple[tuple[str, str], Any]] = {}
"""What this process has opened, by kind: where it lies, and the thing itself. One of each kind at most."""


def _once(kind: str, uri: str, manifest: Manifest, load: Callable[[], Kept]) -> Kept:
    key = (uri, manifest.folder)
    if kind not in _kept or _kept[kind][0] != key:
        _kept.pop(kind, None)
        _kept[kind] = (key, load())
    kept: Kept = _kept[kind][1]
    return kept


def text_of(rows: PackedRows, chosen: Sequence[int], encoder: Encoder) -> bytes:
    """The text of these rows, up to YARDSTICK_BYTES: what a compressor has to encode."""
    parts: list[bytes] = []
    room = YARDSTICK_BYTES
    for index in chosen:
        if room <= 0:
            break
        parts.append(encoder.decode_bytes(rows.rows([index])[0].tolist()))
        room -= len(parts[-1])
    return b"".join(parts)


def summary(manifest: Manifest) -> tuple[str, str]:
    """Rows in; loss, and bits per byte against gzip's."""
    counts: Any = manifest.counts
    ours, gzip = counts["bits_per_byte"], counts["gzip_bits_per_byte"]
    return f"{counts['num_rows']:,} rows", f"loss {counts['loss']:.3f}, {ours:.3f} bits/byte (gzip -9: {gzip:.3f})"


STAGE = Stage(
    makes="evaluation",
    inputs=("run", "packed"),
    settings=lambda recipe: stage_settings(recipe, "evaluate"),
    run=run,
    summary=summary,
)

if __name__ == "__main__":
    main("ray_jobs.evaluate")
