"""The runs of a store: list them, look at one, verify it, export a checkpoint, delete.

    python -m ray_jobs.runs --config FILE [--set key.path=value]... ACTION

    list [--json]                              all runs of the recipe's store
    show [RUN] [--json]                        the checkpoints of a run (the recipe's, unless another is named)
    verify [RUN] [--step N]                    read every file and check its hash; exit code 1 if one is bad
    export [RUN] [--step N] --to WHERE         a checkpoint as the hub has models; WHERE: a folder, or s3://...
    delete [RUN] [--step N] --yes              a run, or one of its checkpoints

No stage, and no Ray: everything is read from the store. Exit codes are those of the stages.
"""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from codeparrot import runs
from codeparrot.config import Recipe
from codeparrot.errors import CheckpointError, ConfigError, ManifestError
from codeparrot.hub import CARD, hub_files
from codeparrot.plots import visible
from codeparrot.storage import LocalStorage, Storage, open_storage
from ray_jobs.progress import console, size
from ray_jobs.stage import guarded, shared_options

NAME = "ray_jobs.runs"
SHORT = 12
NUM_SHOWN = 10
UNKNOWN = "-"


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; returns the exit code."""
    options = parse(NAME, arguments)
    return guarded(options, lambda recipe: ACTIONS[options.action](options, recipe, open_storage(recipe.storage.uri)))


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a RUN that it names becomes the recipe's `run_name`."""
    parser = shared_options(name)
    parser.description = "The runs of a store."
    shared = argparse.ArgumentParser(add_help=False)  # also after the action, where `make run ARGS=` puts them
    shared.add_argument("--set", action="append", default=[], dest="later", help=argparse.SUPPRESS)
    for flag in ("--dry-run", "--debug"):
        shared.add_argument(flag, action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    run = argparse.ArgumentParser(add_help=False)
    run.add_argument("run", nargs="?", metavar="RUN", help="its name; without it, the recipe's run_name")
    step = argparse.ArgumentParser(add_help=False)
    step.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, about: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=about, description=about, parents=[shared, *parents], allow_abbrev=False)

    listing = action("list", "all runs of the store")
    showing = action("show", "the checkpoints of a run", run)
    for each in (listing, showing):
        each.add_argument("--json", action="store_true", help="print one JSON document")
    action("verify", "read every file of a run and check its hash", run, step)
    exporting = action("export", "write a checkpoint as the hub has models; the newest intact one", run, step)
    exporting.add_argument("--to", required=True, metavar="WHERE", help="a folder of this machine, or s3://...; empty")
    deleting = action("delete", "delete a run, or one of its checkpoints", run, step)
    deleting.add_argument("--yes", action="store_true", help="do it, rather than say what it would be")
    options = parser.parse_args(arguments)
    named = getattr(options, "run", None)
    options.overrides = [
        *options.overrides,
        *options.later,
        *([] if named is None else [f"run_name={json.dumps(named)}"]),
    ]
    return options


def list_runs(options: argparse.Namespace, _: Recipe, storage: Storage) -> None:
    """All runs of the store."""
    found = runs.find_runs(storage)
    if options.json:
        print_json({"storage_uri": storage.uri, "runs": [asdict(run) for run in found]})
    elif found:
        print_runs(found)
    else:
        print(f"{storage.uri} has no runs")


def show_run(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """One run, and its checkpoints."""
    run = runs.require_run(storage, recipe.run_name)
    rows = [checkpoint_row(saved, recipe) for saved in runs.saved_checkpoints(storage, run.name)]
    if options.json:
        print_json({"storage_uri": storage.uri, **asdict(run), "checkpoints": rows})
        return
    print_runs([run])
    print()
    if not rows:
        print("no checkpoints")
        return
    columns = ("step", ">size", ">files", "code", "committed", "permanent")
    print_table(columns, [_checkpoint_cells(row) for row in rows])


def checkpoint_row(saved: runs.Saved, recipe: Recipe) -> dict[str, Any]:
    """A checkpoint in figures; none but its step if its manifest is damaged."""
    every, manifest = recipe.train.checkpoint.keep_every_steps, saved.manifest
    return {
        "step": saved.step,
        "size_bytes": sum(file.size_bytes for file in manifest.files) if manifest else None,
        "num_files": len(manifest.files) if manifest else None,
        "code": manifest.code if manifest else None,
        "created": manifest.created if manifest else None,
        "permanent": every is not None and saved.step % every == 0,
    }


def _checkpoint_cells(row: dict[str, Any]) -> list[str]:
    if row["created"] is None:
        return [f"{row['step']}", UNKNOWN, UNKNOWN, UNKNOWN, "its manifest is damaged", UNKNOWN]
    about = (size(row["size_bytes"]), f"{row['num_files']}", row["code"][:SHORT], row["created"])
    return [f"{row['step']}", *about, "yes" if row["permanent"] else "no"]


def verify_run(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Say of each output whether it is intact. Raises ManifestError if one is not."""
    runs.require_run(storage, recipe.run_name)
    checked, damaged = 0, []
    for finding in runs.verify(storage, recipe.run_name, options.step):
        checked += 1
        what = "run" if finding.step is None else f"step {finding.step}"
        if finding.bad:
            damaged.append(what)
            names = ", ".join(finding.bad[:NUM_SHOWN]) + (", ..." if len(finding.bad) > NUM_SHOWN else "")
            print(f"{what:<14} damaged  {visible(names)}", flush=True)
        else:
            print(f"{what:<14} ok       {finding.num_files} files, {size(finding.size_bytes)}", flush=True)
    if damaged:
        raise ManifestError(
            f"{len(damaged)} of {checked} outputs of {recipe.run_name} are damaged or incomplete: "
            f"{', '.join(damaged)}; training passes over such checkpoints, `delete --step N --yes` removes one"
        )
    if not checked:
        print("nothing is committed yet")


def export_run(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Write the model of a checkpoint. Raises ConfigError if there is something already."""
    runs.require_run(storage, recipe.run_name)
    target = empty_target(options.to)
    checkpoint = runs.choose_checkpoint(storage, recipe.run_name, options.step)
    files = hub_files(storage, recipe.prefix_of("run"), checkpoint)
    for name in sorted(files, key=lambda name: (name == CARD, name)):
        target.write(name, files[name])
    total = size(sum(map(len, files.values())))
    print(f"step {checkpoint.step} of {recipe.run_name}: {len(files)} files, {total} -> {options.to}")


def empty_target(where: str) -> Storage:
    """The folder or prefix to export to. Raises ConfigError if it is not empty."""
    if "://" in where:
        try:
            target = open_storage(where)
        except ConfigError as error:
            raise ConfigError(str(error).replace("storage.uri", "--to")) from None
        used = next(iter(target.list()), None) is not None
    else:
        target, folder = LocalStorage(where), Path(where).expanduser()
        used = any(folder.iterdir()) if folder.is_dir() else folder.exists()
    if used:
        raise ConfigError(f"--to {where}: there is something already, which is never overwritten; name a new folder")
    return target


def delete_run(options: argparse.Namespace, recipe: Recipe, storage: Storage) -> None:
    """Delete, or without --yes say what. Raises LeaseHeld if a living process writes it."""
    name, step = recipe.run_name, options.step
    runs.require_run(storage, name)
    found = runs.doomed(storage, name, step)
    what = f"{storage.uri}/{runs.prefix_of(name)}" + ("" if step is None else f", checkpoint of step {step}")
    if not found:
        raise CheckpointError(f"{what}: there is nothing to delete")
    if not options.yes:
        for path, num_bytes in found:
            print(f"{visible(path)}  {size(num_bytes)}")
        raise ConfigError(f"nothing was deleted: {what} ({_amount(found)}) goes only with --yes")
    print(f"deleted {what} ({_amount(runs.delete(storage, name, step))})")


def _amount(found: Sequence[tuple[str, int]]) -> str:
    return f"{len(found)} files, {size(sum(num_bytes for _, num_bytes in found))}"


def print_runs(found: Sequence[runs.Run]) -> None:
    """A line for each run."""
    columns = ("run", "state", ">steps", ">checkpoint", ">validation loss", ">size", "committed")
    print_table(columns, [_run_cells(run) for run in found])


def _run_cells(run: runs.Run) -> list[str]:
    steps = f"{run.steps}/{run.max_steps if run.max_steps is not None else UNKNOWN}"
    loss = f"{run.validation_loss:.4f}" if run.validation_loss is not None else UNKNOWN
    checkpoint = f"{run.newest_checkpoint}" if run.newest_checkpoint is not None else UNKNOWN
    return [run.name, run.state, steps, checkpoint, loss, size(run.size_bytes), run.created or UNKNOWN]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal, aligned lines elsewhere. A column whose title begins with `>` is aligned to the right."""
    titles, right = [column.removeprefix(">") for column in columns], [column.startswith(">") for column in columns]
    cells = [[visible(value) for value in row] for row in rows]
    if console.is_terminal:
        table = Table(*titles)
        for column, to_the_right in zip(table.columns, right, strict=True):
            column.justify = "right" if to_the_right else "left"
        for row in cells:
            table.add_row(*map(escape, row))
        console.print(table)
        return
    lines = [titles, *cells]
    widths = [max(len(line[index]) for line in lines) for index in range(len(titles))]
    for line in lines:
        padded = zip(line, widths, right, strict=True)
        text = "  ".join(f"{value:>{width}}" if far else f"{value:<{width}}" for value, width, far in padded)
        print(text.rstrip())


def print_json(document: dict[str, Any]) -> None:
    """One JSON document."""
    print(json.dumps(document, indent=2))


ACTIONS: dict[str, Callable[[argparse.Namespace, Recipe, Storage], None]] = {
    "list": list_runs,
    "show": show_run,
    "verify": verify_run,
    "export": export_run,
    "delete": delete_run,
}

if __name__ == "__main__":
    # On standard error: standard output is for the answer, which may be JSON.
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("codeparrot").setLevel(logging.INFO)
    sys.exit(main())
