"""The runs of a study, one after another, and the page that says what they say together.

    python -m ray_jobs.sweep --config STUDY [--set key.path=value]... [--dry-run] [--debug]

Every run goes through the stages from `collect` to `evaluate`, under a name of its own, in the store of the study's
recipe; what it gave is then written to `studies/NAME/runs/RUN.json`. Killed at any moment, the same command goes on:
runs that are recorded are passed over, and the stages of the others know what is done. A record counts as long as
settings, code and rows are those that it was made of.

One after another, since each run spreads over the whole cluster already (docs/decisions/0014 says why not Ray Tune).
No stage: figures and page go to the store (`studies/NAME/`) and to `.codeparrot/studies/NAME/` of this machine.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from codeparrot.errors import ObjectNotFound
from codeparrot.log_plots import power
from codeparrot.manifest import Manifest, canonical, require_manifest
from codeparrot.plots import compact
from codeparrot.storage import LocalStorage, Storage, open_storage, sha256_hex
from codeparrot.study import Planned, Study, load_study
from codeparrot.study_page import Question, Result, findings, render
from ray_jobs import collect, curate, evaluate, pack, train, train_tokenizer
from ray_jobs.cluster import ray_session
from ray_jobs.interrupt import interruptible
from ray_jobs.progress import configure_logging, duration
from ray_jobs.runs import print_table
from ray_jobs.sizes import size_of_recipe
from ray_jobs.stage import Stage, reported, run_stage, shared_options, state_folder
from ray_jobs.status import announced

NAME = "ray_jobs.sweep"
logger = logging.getLogger(NAME)  # also where this module is the program
PAGE, FIGURES = "study.html", "results.json"
ROWS: Sequence[Stage] = (collect.STAGE, curate.STAGE, train_tokenizer.STAGE, pack.STAGE)
"""What runs may share."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the command line; returns the exit code."""
    options = parse(NAME, arguments)
    configure_logging(options.debug)
    return reported(lambda: sweep(options), debug=options.debug)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    return shared_options(name, config="the study, a YAML file", dry_run="list the runs and stop").parse_args(arguments)


def sweep(options: argparse.Namespace) -> int:
    """Make the runs that are missing, and write the page."""
    study = load_study(options.config, options.overrides)
    if options.dry_run:
        show_plan(study)
        return 0
    storage = open_storage(study.uri)
    storage.check()
    with interruptible(), announced(), ray_session():
        results = run_all(study, storage)
    found = findings(study.settings.study_name, results, _question(study), study.planned[0].recipe.seed)
    axes = [axis.name for axis in study.settings.axes]
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    page = render(found, axes, Path(options.config).read_text("utf-8"), created).encode()
    folder = state_folder() / "studies" / study.settings.study_name
    for target, prefix in ((storage, f"{_prefix(study)}/"), (LocalStorage(str(folder)), "")):
        target.write(prefix + FIGURES, json.dumps(found, indent=1).encode())
        target.write(prefix + PAGE, page)
    show(found)
    print(f"page     {folder / PAGE}\nfigures  {folder / FIGURES}")
    return 0


def _question(study: Study) -> Question | None:
    settings = study.settings.scaling
    return Question(settings.budgets, settings.tolerance) if settings else None


def _prefix(study: Study) -> str:
    return f"studies/{study.settings.study_name}"


def run_all(study: Study, storage: Storage) -> list[Result]:
    """Every run's result, from its record or made now."""
    results: list[Result] = []
    corpora: set[str] = set()
    for _, sharing in groupby(study.planned, key=lambda planned: planned.rows):
        results += run_sharing(study, list(sharing), storage, len(results), corpora)
    if len(corpora) > 1:
        message = "study            the corpus has changed between runs: delete %s/ to make all of them again"
        logger.warning(message, _prefix(study))
    return results


def run_sharing(
    study: Study, planned: Sequence[Planned], storage: Storage, num_before: int, corpora: set[str]
) -> list[Result]:
    """The results of runs that train on the same rows, which are made only if one of the runs is to be made.

    `corpora`: gets the curated corpora that the runs are from.
    """
    records = [_record(study, each, storage) for each in planned]
    digest: str | None = None
    if None in records or len({record["packed"] for record in records if record}) > 1:
        manifests = [run_stage(stage, planned[0].recipe, storage).manifest for stage in ROWS]
        digest = manifests[-1].digest
    results = []
    for place, (each, record) in enumerate(zip(planned, records, strict=True), num_before + 1):
        if record is None or digest not in (None, record["packed"]):
            logger.info("study            run %d of %d: %s", place, len(study.planned), each.recipe.run_name)
            record = _make(study, each, storage)
        corpora.add(record["curated"])
        results.append(Result(**record["result"]))
    return results


def _path(study: Study, planned: Planned) -> str:
    return f"{_prefix(study)}/runs/{planned.recipe.run_name}.json"


def _fingerprint(planned: Planned) -> str:
    """What a record depends on, but for the rows, whose digest it holds."""
    code = [stage.code for stage in (*ROWS, train.STAGE, evaluate.STAGE)]
    return sha256_hex(canonical([planned.shape, code]))


def _record(study: Study, planned: Planned, storage: Storage) -> dict[str, Any] | None:
    """What a run has given, if it was made with these settings and this code."""
    try:
        found: dict[str, Any] = json.loads(storage.read(_path(study, planned)))
    except (ObjectNotFound, ValueError):
        return None
    if not isinstance(found, dict) or found.get("fingerprint") != _fingerprint(planned):
        return None
    labels = {"labels": dict(planned.labels), "values": dict(planned.values), "held_out": study.is_held_out(planned)}
    return {**found, "result": {**found["result"], **labels}}  # how a study calls it may have changed


def _make(study: Study, planned: Planned, storage: Storage) -> dict[str, Any]:
    """Train and evaluate, then record."""
    recipe = planned.recipe
    trained = run_stage(train.STAGE, recipe, storage).manifest
    evaluated = run_stage(evaluate.STAGE, recipe, storage).manifest
    packed = require_manifest(storage, recipe.prefix_of("packed"), pack.STAGE.name)
    result = _result(study, planned, storage, trained, evaluated, packed)
    record = {
        "fingerprint": _fingerprint(planned),
        "packed": packed.digest,
        "curated": packed.inputs["curated"],
        "result": asdict(result),
    }
    storage.write(_path(study, planned), json.dumps(record).encode())
    return record


def _result(
    study: Study, planned: Planned, storage: Storage, trained: Manifest, evaluated: Manifest, packed: Manifest
) -> Result:
    counts: Mapping[str, Any] = evaluated.counts
    by_repository = json.loads(evaluated.read(storage, evaluate.BREAKDOWN))["by_repository"]
    return Result(
        run_name=planned.recipe.run_name,
        labels=dict(planned.labels),
        values=dict(planned.values),
        held_out=study.is_held_out(planned),
        num_parameters=trained.counts["num_parameters"],
        tokens=trained.counts["num_steps"] * planned.recipe.train.global_batch_size * planned.recipe.pack.max_seq_len,
        bits_per_byte=counts["bits_per_byte"],
        interval=counts["intervals"]["bits_per_byte"],
        loss=counts["loss"],
        unique_tokens=packed.counts["splits"]["train"]["tokens_in_rows"],
        seconds=trained.seconds + evaluated.seconds,
        repositories={
            row["name"]: (row["bits_per_byte"] * row["num_bytes"], row["num_bytes"])
            for row in by_repository
            if row["num_bytes"]
        },
    )


def show_plan(study: Study) -> None:
    """The runs, and what they will take."""
    rows, total = [], 0.0
    for planned in study.planned:
        recipe = planned.recipe
        size = size_of_recipe(recipe)
        note = "held out" if study.is_held_out(planned) else ""
        rows.append([recipe.run_name, compact(size.num_parameters), compact(size.tokens), power(size.flops), note])
        total += size.flops
    print_table(("run", ">parameters", ">tokens", ">FLOPs", ""), rows)
    print(f"{len(rows)} runs, {power(total)} FLOPs")


def show(found: Mapping[str, Any]) -> None:
    """The figures that matter, for a person."""
    ranked = sorted(found["runs"], key=lambda run: run["bits_per_byte"])
    rows = [
        [
            run["run_name"],
            compact(run["num_parameters"]),
            compact(run["tokens"]),
            f"{run['bits_per_byte']:.4f}",
            _behind(run["behind"]),
            duration(run["seconds"]),
        ]
        for run in ranked
    ]
    print_table(("run", ">parameters", ">tokens", ">bits/byte", ">behind the best", ">time"), rows)
    law = found["scaling"]
    if law is None:
        return
    if law["refused"]:
        print(f"no law: {law['refused']}")
        return
    constants = law["law"]
    print(
        f"bits/byte = {constants['irreducible']['value']:.3f} + {constants['size_factor']['value']:.3g} / "
        f"N^{constants['size_exponent']['value']:.3f} + {constants['data_factor']['value']:.3g} / "
        f"D^{constants['data_exponent']['value']:.3f}"
    )
    for each in law["predictions"]:
        verdict = "within" if each["holds"] else "NOT within"
        print(
            f"{each['run_name']}: predicted {each['predicted']['value']:.4f}, measured {each['measured']:.4f} "
            f"({each['error']:+.2%}, {verdict} {law['tolerance']:.0%})"
        )
    for row in law["optimum"]:
        print(
            f"{power(row['flops'])} FLOPs: {compact(row['num_parameters']['value'])} parameters, "
            f"{compact(row['tokens']['value'])} tokens, {row['bits_per_byte']['value']:.4f} bits/byte"
            + (" (beyond the end of extrapolation)" if row["beyond"] else "")
        )
    print(f"extrapolation ends at {power(law['end']['flops'])} FLOPs: {law['end']['reason']}")


def _behind(interval: Mapping[str, Any] | None) -> str:
    if interval is None:
        return ""
    return f"{interval['low']:+.4f} to {interval['high']:+.4f}" + ("" if interval["low"] > 0 else ", not told apart")


if __name__ == "__main__":
    sys.exit(main())
