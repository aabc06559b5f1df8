"""A recipe, checked and resolved by the stages' own code, in a process of its own.

This package knows no recipe: what is a valid one, and what its defaults are, is the library's business. So the same
command that runs in the cluster is run here with --dry-run, and what it prints goes into the cluster: a person's
mistake ends the command before any pod starts, and the run does not depend on the defaults of the image.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

import yaml

from k8s.errors import ClientError, Misuse
from k8s.tools import Done, Run

TIMEOUT_SECONDS = 300.0
"""Importing the stages is most of it; a cold disk makes that slow."""


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe."""

    text: str
    run_name: str
    storage_uri: str

    @property
    def bucket(self) -> str:
        return urlparse(self.storage_uri).netloc


def resolve(path: str, overrides: Sequence[str], run: Run) -> Recipe:
    """Check a recipe file with its overrides. Raises Misuse with all its problems."""
    command = [sys.executable, "-m", "ray_jobs.pipeline", "--config", path]
    command += [part for override in overrides for part in ("--set", override)]
    done = run([*command, "--dry-run"], timeout=TIMEOUT_SECONDS, environment=environment())
    if done.code != 0:
        raise _wrong(done, path)
    return parse(done.out)


def parse(text: str) -> Recipe:
    """A recipe that was resolved before. Raises Misuse if a cluster cannot run it."""
    values = yaml.safe_load(text)
    try:
        name, uri = str(values["run_name"]), str(values["storage"]["uri"])
    except (KeyError, TypeError) as error:
        raise Misuse(f"not a resolved recipe: it has no {error}") from error
    if not uri.startswith("s3://"):
        raise Misuse(
            f"storage.uri: {uri!r} is a folder, which the pods do not share; "
            "give a bucket: --set storage.uri=s3://BUCKET/PREFIX"
        )
    return Recipe(text, name, uri)


def environment() -> dict[str, str]:
    """Variables with which the child process finds the stages beside this package, wherever it is called."""
    root = str(Path(__file__).resolve().parents[1])
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}{os.pathsep}{before}" if before else root}


def _wrong(done: Done, path: str) -> ClientError:
    message = (done.err.strip() or done.out.strip()).removeprefix("error: ")
    if done.code == 2:
        return Misuse(message)
    return ClientError(f"the recipe {path} could not be checked (exit code {done.code}):\n  {done.tail}")
