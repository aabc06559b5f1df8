"""A run to its measures on the validation split, beside plain compressors on the same bytes; or any other model's.

    python -m ray_jobs.evaluate --config FILE                        the stage: the recipe's run
    python -m ray_jobs.evaluate --config FILE --checkpoint WHERE     another model, printed and not stored

WHERE is a run, RUN@STEP, an address, a folder, or a model of the hub (`codeparrot.pretrained`). One with the tokenizer
of the packed rows is measured on these; one with another tokenizer on the documents themselves.

Batches are evaluated by Ray Data's tasks and summed in the order of the rows, so the figures do not depend on the
number of workers.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from codeparrot.breakdown import Costs, Origins, breakdown
from codeparrot.config import Recipe
from codeparrot.data_order import spread as spread_rows
from codeparrot.dataloader import PackedRows
from codeparrot.errors import ManifestError
from codeparrot.evaluate import context_of
from codeparrot.exported import EXPORT
from codeparrot.forgotten import forgotten
from codeparrot.manifest import Manifest, json_lines, require_manifest
from codeparrot.metrics import gzip_bits_per_byte, measures, xz_bits_per_byte
from codeparrot.objectives import CausalSettings, fills_holes, identity_of
from codeparrot.pretrained import Pretrained, load_pretrained
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import Encoder
from ray_jobs import evaluate_tasks
from ray_jobs.cluster import ray_session, spread
from ray_jobs.evaluate_rows import SPLIT, Model, batch_costs, origins_of, together
from ray_jobs.evaluate_texts import sampled_texts, texts_cost
from ray_jobs.progress import configure_logging
from ray_jobs.runs import print_json, print_table
from ray_jobs.stage import MADE_BY, Output, Stage, Work, guarded, main, shared_options, stage_settings

NAME = "ray_jobs.evaluate"
BREAKDOWN, ANSWERS = "breakdown.json", "answers.jsonl"
YARDSTICK_BYTES = 64_000_000  # xz -9 sees no further back than its dictionary of 64 MiB
TEXT_BYTES = 64_000_000
"""Of documents on which a model of another tokenizer is measured."""
TEXTS_AT_ONCE = 32
UNSHAPING = {"num_workers", "resources_per_worker"}
"""Settings that change no figure."""
NUM_SHOWN = 12


def run(work: Work) -> Output:
    """Predict every chosen row once, write what is asked for, and look for what is copied."""
    recipe, storage, settings = work.recipe, work.storage, work.recipe.evaluate
    packed, trained = work.inputs["packed"], work.inputs["run"]
    if trained.inputs["tokenizer"] != packed.inputs["tokenizer"]:
        raise ManifestError(
            f"{packed.prefix} was packed with another tokenizer than {trained.prefix} was trained with; run "
            "`python -m ray_jobs.train` first"
        )
    tokenizer_json = trained.read(storage, f"{EXPORT}tokenizer.json").decode()
    model = Model(f"{storage.uri}/{trained.prefix}", None, trained.folder, any_kind=fills_holes(recipe.objective))
    counts, broken_down = measured_on_rows(recipe, storage, packed, tokenizer_json, model)
    rows = PackedRows(storage, packed, SPLIT)
    text = text_of(rows, spread_rows(rows.num_rows, settings.max_rows), Encoder(tokenizer_json))
    counts |= {"gzip_bits_per_byte": gzip_bits_per_byte(text), "xz_bits_per_byte": xz_bits_per_byte(text)}
    files = [work.attempt.write(BREAKDOWN, json.dumps(broken_down, indent=1).encode())]
    if settings.tasks is not None:
        answers, figures = answered(recipe, storage, work.inputs["curated"], packed, tokenizer_json, model)
        files.append(work.attempt.write(ANSWERS, json_lines(answers)))
        counts["tasks"] = figures
    return files, counts


def measured_on_rows(
    recipe: Recipe, storage: Storage, packed: Manifest, tokenizer_json: str, model: Model
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the measures, the break-downs) of a model on the packed rows."""
    settings = recipe.evaluate
    chosen = spread_rows(PackedRows(storage, packed, SPLIT).num_rows, settings.max_rows)
    batches = [chosen[start : start + settings.batch_size] for start in range(0, len(chosen), settings.batch_size)]
    predict = partial(
        batch_costs,
        uri=storage.uri,
        packed=packed,
        tokenizer_json=tokenizer_json,
        model=model,
        settings=recipe.objective if model.any_kind else CausalSettings(),
        seed=recipe.seed,
    )
    costs, positions = together(
        spread(
            "evaluate",
            batches,
            predict,
            "batches",
            workers=settings.num_workers,
            resources=settings.resources_per_worker,
        )
    )
    counts, found = _figures(costs, positions, origins_of(storage, packed, chosen), recipe.seed)
    return {**counts, "num_rows": len(chosen)}, found


def measured_on_texts(
    recipe: Recipe, storage: Storage, packed: Manifest, curated: Manifest, model: Model
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same on documents: as much of the validation split as of its rows."""
    settings, split = recipe.evaluate, packed.counts["splits"][SPLIT]
    share = min(1.0, (settings.max_rows or split["num_rows"]) / split["num_rows"])
    texts = sampled_texts(storage, curated, recipe.seed, min(TEXT_BYTES, math.ceil(share * split["size_bytes"])))
    parts = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
    predict = partial(texts_cost, model=model, batch_size=settings.batch_size)
    costs, positions = together(
        spread(
            "evaluate",
            parts,
            predict,
            "batches",
            workers=settings.num_workers,
            resources=settings.resources_per_worker,
        )
    )
    ids, names = [text.id for text in texts], [text.repository for text in texts]
    origins = Origins(names, [text.license for text in texts], ids, costs.num_tokens)
    counts, found = _figures(costs, positions, origins, recipe.seed)
    return {**counts, "num_documents": len(texts)}, found


def _figures(costs: Costs, positions: Costs, origins: Origins, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    found = breakdown(costs, positions, origins, seed)
    whole = measures(math.fsum(costs.nll.tolist()), int(costs.num_tokens.sum()), int(costs.num_bytes.sum()))
    return {**asdict(whole), "intervals": found["intervals"]}, found


def answered(
    recipe: Recipe, storage: Storage, curated: Manifest, packed: Manifest, tokenizer_json: str, model: Model
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(every answer, the figures of all) to the tasks of the validation split."""
    settings, seed = recipe.evaluate, recipe.seed
    assert settings.tasks is not None
    tasks = evaluate_tasks.choose_tasks(storage, curated, settings.tasks, seed, forgotten(storage))
    completions = evaluate_tasks.complete(
        tasks, model, settings.tasks, settings.num_workers, settings.resources_per_worker
    )
    judged = evaluate_tasks.judge(
        tasks, completions, partial(evaluate_tasks.find_copies, storage, packed, tokenizer_json)
    )
    return evaluate_tasks.lines_of(judged, storage, packed), evaluate_tasks.summary(judged, seed)


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
    inputs=("run", "packed", "curated"),
    settings=lambda recipe: (
        stage_settings(recipe, "seed")
        | {"evaluate": recipe.evaluate.model_dump(mode="json", exclude=UNSHAPING)}
        | identity_of(recipe.objective)
    ),
    run=run,
    summary=summary,
)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = shared_options(name)
    parser.add_argument(
        "--checkpoint",
        metavar="WHERE",
        help="measure this model rather than the recipe's run: RUN, RUN@STEP, an address, a folder, OWNER/NAME",
    )
    parser.add_argument("--json", action="store_true", help="with --checkpoint: print one JSON document")
    return parser.parse_args(arguments)


def evaluate_other(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Measure the model that --checkpoint names, and print what comes out."""
    curated, tokenizer, packed = (
        require_manifest(storage, recipe.prefix_of(noun), MADE_BY[noun]) for noun in ("curated", "tokenizer", "packed")
    )
    if packed.inputs["tokenizer"] != tokenizer.digest:
        raise ManifestError(
            f"{packed.prefix} is not of the tokenizer in the store; run `python -m ray_jobs.pack` first"
        )
    loaded = load_pretrained(options.checkpoint, storage)
    model = Model(options.checkpoint, storage.uri)
    tokenizer_json = tokenizer.read(storage, "tokenizer.json").decode()
    if takes_rows(loaded, tokenizer_json, packed):
        counts, found = measured_on_rows(recipe, storage, packed, tokenizer_json, model)
    else:
        counts, found = measured_on_texts(recipe, storage, packed, curated, model)
    if recipe.evaluate.tasks is not None:
        counts["tasks"] = answered(recipe, storage, curated, packed, tokenizer_json, model)[1]
    if options.json:
        print_json({"model": loaded.source, **counts, "breakdown": found})
        return
    show(loaded.source, counts, found)


def takes_rows(loaded: Pretrained, tokenizer_json: str, packed: Manifest) -> bool:
    """Whether packed rows are what this model reads: of its own tokens, and no longer than it can see."""
    import tokenizers

    known = tokenizers.Tokenizer.from_str(tokenizer_json).get_vocab()
    same: bool = loaded.tokenizer.get_vocab() == known
    return same and context_of(loaded.model) >= packed.counts["max_seq_len"]


def show(source: str, counts: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """The figures for a person."""
    interval = counts["intervals"]["bits_per_byte"]
    unit = counts["intervals"]["unit"]
    between = f" ({interval['low']:.3f} to {interval['high']:.3f} by {unit})" if interval else ""
    rows = "rows" if "num_rows" in counts else "documents"
    print(f"{source}: {counts[f'num_{rows}']:,} {rows}, {counts['num_tokens']:,} tokens of its own")
    print(f"loss {counts['loss']:.4f} nats/token, perplexity {counts['perplexity']:.1f}")
    print(f"{counts['bits_per_byte']:.4f} bits/byte{between}")
    print_table(
        ("repository", ">bits/byte", ">loss", ">bytes"),
        [
            [row["name"], f"{row['bits_per_byte'] or 0:.3f}", f"{row['loss']:.3f}", f"{row['num_bytes']:,}"]
            for row in found["by_repository"][:NUM_SHOWN]
        ],
    )
    for kind, figures in (counts.get("tasks") or {}).items():
        if kind in ("line", "body"):
            print(f"{kind}: {figures['exact_match']:.1%} exact, edit similarity {figures['edit_similarity']:.3f}")


if __name__ == "__main__":
    options = parse(NAME)
    if options.checkpoint is None:
        main(NAME)
    configure_logging(options.debug)

    def _evaluate(recipe: Recipe) -> None:
        with ray_session():
            evaluate_other(options, recipe, open_storage(recipe.storage.uri))

    sys.exit(guarded(options, _evaluate))
