"""The frame of every stage: command line, skipping what is up to date, committing, exit codes.

    python -m ray_jobs.NAME --config FILE [--set key.path=value]... [--dry-run] [--debug]

Exit codes: 0 done or up to date, 1 failed, 2 bad configuration, 3 interrupted (the same command continues).
"""

import argparse
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from codeparrot import errors
from codeparrot.code_version import code_version
from codeparrot.config import Recipe, dump_recipe, load_recipe
from codeparrot.lease import Lease, holding
from codeparrot.manifest import (
    Attempt,
    File,
    Manifest,
    changed_settings,
    load_manifest,
    require_manifest,
)
from codeparrot.storage import Storage, open_storage
from ray_jobs.cluster import ray_session
from ray_jobs.interrupt import check, interruptible
from ray_jobs.kept import Kept
from ray_jobs.progress import configure_logging, duration
from ray_jobs.status import announced, status

logger = logging.getLogger(__name__)

MADE_BY = {
    "raw": "collect",
    "curated": "curate",
    "tokenizer": "train_tokenizer",
    "packed": "pack",
    "run": "train",
    "evaluation": "evaluate",
    "completions": "generate",
    "humaneval": "humaneval",
    "report": "report",
}
"""The nouns of the flow, and the stage that makes each."""
OPTIONAL = ("humaneval",)
"""Those that a recipe may leave out: they are made and shown only if it has a part of this name."""
MAX_SHOWN_CHANGES = 5


def state_folder() -> Path:
    """Where this machine keeps its side of a run: `.codeparrot`, or what CODEPARROT_STATE names."""
    return Path(os.environ.get("CODEPARROT_STATE") or ".codeparrot").absolute()


@dataclass(frozen=True)
class Work:
    """What a stage is given to do."""

    recipe: Recipe
    storage: Storage
    attempt: Attempt
    inputs: Mapping[str, Manifest]
    plan: Any
    """What the stage's `plan` returned."""
    lease: Lease
    """Held for as long as the stage runs."""

    @property
    def kept(self) -> Kept:
        """Where the results of its tasks outlive a kill."""
        return Kept(self.storage.uri, self.attempt.folder)


Output = tuple[Sequence[File], Mapping[str, Any]]
"""The files of an output and its counts."""


@dataclass(frozen=True)
class Stage:
    """One arrow of the flow."""

    makes: str
    """A noun of MADE_BY."""
    inputs: tuple[str, ...]
    settings: Callable[[Recipe], Mapping[str, Any]]
    """The settings that its output depends on."""
    run: Callable[[Work], Output]
    summary: Callable[[Manifest], tuple[str, str]]
    """What came in and what went out, for the table at the end."""
    plan: Callable[[Recipe], tuple[str, Any]] | None = None
    """For inputs outside the store: their fingerprint, and anything that `run` needs of them."""

    @property
    def name(self) -> str:
        return MADE_BY[self.makes]

    @property
    def code(self) -> str:
        """The version of the code that shapes its output, part of its fingerprint."""
        return code_version(f"ray_jobs.{self.name}")


@dataclass(frozen=True)
class Outcome:
    """How a stage ended."""

    name: str
    status: str
    """`done` or `up to date`."""
    seconds: float
    manifest: Manifest
    summary: tuple[str, str]


def run_stage(stage: Stage, recipe: Recipe, storage: Storage) -> Outcome:
    """Bring the stage's output up to date. Raises CodeParrotError."""
    check()
    status.begin(stage.name)
    began = time.monotonic()
    nouns = [noun for noun in stage.inputs if wanted(noun, recipe)]
    inputs = {noun: require_manifest(storage, recipe.prefix_of(noun), MADE_BY[noun]) for noun in nouns}
    digests = {noun: manifest.digest for noun, manifest in inputs.items()}
    plan = None
    if stage.plan is not None:
        digests["plan"], plan = stage.plan(recipe)
    prefix = recipe.prefix_of(stage.makes)
    attempt = Attempt(storage, stage.name, prefix, stage.settings(recipe), digests, stage.code)
    committed = load_manifest(storage, prefix)
    missing = committed.missing(storage) if committed else []
    found = "up to date" if attempt.up_to_date(committed) and not missing else "done"
    if committed is None or found == "done":
        with holding(storage, prefix) as lease:
            _announce(attempt, committed, missing)
            attempt.take_up(load_manifest(storage, prefix))  # anew: another run may have committed until now
            try:
                files, counts = stage.run(Work(recipe, storage, attempt, inputs, plan, lease))
                check()
                lease.renew()
                committed = attempt.commit(files, counts)
            except (errors.ManifestError, errors.ObjectNotFound):
                attempt.forget()
                raise
    seconds = time.monotonic() - began
    outcome = Outcome(stage.name, found, seconds, committed, stage.summary(committed))
    came, went = outcome.summary
    logger.info("%-16s %-10s %9s   %s -> %s", stage.name, found, duration(seconds), came, went)
    return outcome


def wanted(noun: str, recipe: Recipe) -> bool:
    """Whether a run of this recipe has this noun."""
    return noun not in OPTIONAL or getattr(recipe, noun) is not None


def _announce(attempt: Attempt, committed: Manifest | None, missing: Sequence[str]) -> None:
    if committed is None:
        logger.info("%-16s starting", attempt.stage)
        return
    reasons = changed_settings(committed.settings, attempt.settings)[:MAX_SHOWN_CHANGES]
    reasons += [f"{noun} changed" for noun in attempt.inputs if committed.inputs.get(noun) != attempt.inputs[noun]]
    if committed.code != attempt.code:
        reasons.append("its code changed")
    if missing:
        reasons.append(f"{len(missing)} of its files are gone")
    logger.info("%-16s again, since %s; the old output stays valid until then", attempt.stage, "; ".join(reasons))


def stage_settings(recipe: Recipe, *keys: str) -> dict[str, Any]:
    """The named parts of a recipe, as plain values."""
    values = recipe.model_dump(mode="json")
    return {key: values[key] for key in keys}


def main(module: str) -> NoReturn:
    """Run the stage of a module as a command and exit.

    The module is imported by its name, since what is defined in `__main__` cannot be pickled for a Ray worker.
    """
    stage: Stage = import_module(module).STAGE
    command(module, lambda recipe, storage: run_stage(stage, recipe, storage))


def command(name: str, action: Callable[[Recipe, Storage], object]) -> NoReturn:
    """Parse the command line, run `action`, and exit with the code that tells how it ended."""
    options = parse(name)
    configure_logging(options.debug)
    sys.exit(guarded(options, lambda recipe: _checked(recipe, action)))


def _checked(recipe: Recipe, action: Callable[[Recipe, Storage], object]) -> None:
    storage = open_storage(recipe.storage.uri)
    storage.check()
    with announced(), ray_session():
        action(recipe, storage)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line that every stage shares."""
    return shared_options(name).parse_args(arguments)


def shared_options(
    name: str, *, config: str = "the recipe, a YAML file", dry_run: str = "print the resolved recipe and stop"
) -> argparse.ArgumentParser:
    """The parser of that command line. `config`, `dry_run`: what these two options are."""
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=f"One stage: {name}.", allow_abbrev=False)
    parser.add_argument("--config", required=True, metavar="FILE", help=config)
    add_overrides(parser)
    parser.add_argument("--dry-run", action="store_true", help=dry_run)
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """The option `--set`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="override one setting of the recipe, for example train.max_steps=100; repeatable",
    )


def guarded(options: argparse.Namespace, action: Callable[[Recipe], object]) -> int:
    """Run `action` on the recipe; every way it can end becomes one line and an exit code."""

    def attempt() -> int:
        recipe = load_recipe(options.config, options.overrides)
        if options.dry_run:
            print(dump_recipe(recipe), end="")
        else:
            with interruptible():
                action(recipe)
        return 0

    return reported(attempt, debug=options.debug)


def reported(action: Callable[[], int], *, debug: bool) -> int:
    """The exit code of `action`; an error becomes one line and the exit code that belongs to it."""
    try:
        return action()
    except errors.CodeParrotError as error:
        if debug:
            traceback.print_exc()
        print(f"{error.kind}: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence for a person at a terminal
        if debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:500]
        print(f"error: unexpected {type(error).__name__}: {text}; --debug shows where", file=sys.stderr, flush=True)
        return 1
