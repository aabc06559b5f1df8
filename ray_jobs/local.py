"""A laptop's entry: the embedded object store for the length of a run, and the run in it.

    python -m ray_jobs.local [STAGE] --config FILE [--set key.path=value]... [--dry-run] [--debug]
    python -m ray_jobs.local runs --config FILE [--set key.path=value]... ACTION
    python -m ray_jobs.local evaluate|provenance|forget|serve --config FILE ...
    python -m ray_jobs.local sweep --config STUDY [--set key.path=value]... [--dry-run]
    python -m ray_jobs.local compare MODEL MODEL... [--config FILE] ...

runs `python -m ray_jobs.STAGE` (default: pipeline) with the same arguments. If AWS_ENDPOINT_URL is set, that store is
used; if the server's wheel does not exist for this platform, a local directory stands in for it. `runs`, `provenance`,
`serve` and `compare`, which only look, also work beside a run, in the store of that run.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from codeparrot import local_store, weed
from codeparrot.config import load_recipe
from codeparrot.errors import CodeParrotError, ConfigError, Interrupted, StoreFull
from codeparrot.s3 import endpoint_url
from codeparrot.storage import parse_uri
from codeparrot.study import load_study
from ray_jobs import compare, evaluate, forget, provenance, runs, serve, sweep, train
from ray_jobs.interrupt import SIGNALS, interruptible
from ray_jobs.progress import size
from ray_jobs.stage import MADE_BY, parse, reported, state_folder

COMMANDS = {
    "evaluate": evaluate.parse,
    "compare": compare.parse,
    "serve": serve.parse,
    "runs": runs.parse,
    "provenance": provenance.parse,
    "forget": forget.parse,
    "train": train.parse,
    "sweep": sweep.parse,
}
"""Those with a command line of their own."""
LOOKING = ("runs", "provenance", "serve", "compare")
STAGES = tuple(dict.fromkeys(("pipeline", *MADE_BY.values(), *COMMANDS)))
SHADOWING = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_DEFAULT_PROFILE",
    "AWS_CONFIG_FILE",
    "AWS_ENDPOINT_URL_S3",
    "AWS_CA_BUNDLE",
)
LITTLE_BYTES = 64_000_000
"""With less space than this left, a full disk is the likely cause of a failure: stores say `internal error`."""


def main() -> int:
    """Start what is missing, run the stage, stop what was started; returns the stage's exit code."""
    arguments = sys.argv[1:]
    stage = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "pipeline"
    if stage not in STAGES:
        print(f"error: no stage {stage!r}; there are {', '.join(STAGES)}", file=sys.stderr)
        return ConfigError.exit_code
    options = COMMANDS.get(stage, parse)(f"ray_jobs.local {stage}", arguments)
    state = state_folder()
    return reported(lambda: _launch(stage, options, arguments, state), debug=options.debug)


def _launch(stage: str, options: argparse.Namespace, arguments: list[str], state: Path) -> int:
    uri = _uri(stage, options)
    if options.dry_run:
        return _run(stage, arguments, {})
    beside = stage in LOOKING and running_pid(state) is not None
    alone = contextlib.nullcontext() if beside else _only_one(state)
    with interruptible(), alone, _store(state, uri, beside) as (environment, overrides):
        environment = {"CODEPARROT_CACHE": str(state / "cache"), "CODEPARROT_STATE": str(state), **environment}
        code = _run(stage, [*arguments, *overrides], environment)
        free = shutil.disk_usage(state).free
        if code == CodeParrotError.exit_code and free < LITTLE_BYTES:
            raise StoreFull(f"the disk of {state} is full ({size(free)} left); free some and run again to continue")
        return code


def _uri(stage: str, options: argparse.Namespace) -> str:
    """The base of the storage that a command line names."""
    if stage == "sweep":
        return load_study(options.config, options.overrides).uri
    return load_recipe(options.config, options.overrides).storage.uri if options.config else compare.store_of(options)


@contextlib.contextmanager
def _only_one(state: Path) -> Iterator[None]:
    """Two runs in one state folder would stop each other's store."""
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock_file = (state / "lock").open("a+")
    except OSError as error:
        raise CodeParrotError(
            f"cannot use {state}: {error.strerror}; set CODEPARROT_STATE to another folder"
        ) from error
    with lock_file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise CodeParrotError(
                f"another run (process {running_pid(state)}) uses {state}; wait for it, or set CODEPARROT_STATE"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def running_pid(state: Path) -> int | None:
    """The process of the run that uses this state folder, if there is one."""
    try:
        with (state / "lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return int(lock.read())
    except (OSError, ValueError):
        return None
    return None


@contextlib.contextmanager
def _store(state: Path, uri: str, beside: bool = False) -> Iterator[tuple[Mapping[str, str], list[str]]]:
    """(environment variables, overrides) by which the run reaches its storage; `beside`: in the store of another."""
    scheme, bucket, prefix = parse_uri(uri)
    if scheme != "s3" or endpoint_url():
        yield {}, []
    elif weed.available() is None:
        folder = state / "storage" / bucket / prefix
        print(f"the embedded object store does not exist for this platform; using {folder} instead")
        yield {}, ["--set", f"storage.uri={folder}"]
    else:
        for name in SHADOWING:  # they would win over the store's own credentials
            os.environ.pop(name, None)
        hosts = [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1", "localhost"]
        os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, hosts))
        if beside:
            yield local_store.join(state / "store").environment(), []
            return
        with local_store.running(state / "store", bucket, revive=True) as store:
            yield store.environment(), []


def _run(stage: str, arguments: list[str], environment: Mapping[str, str]) -> int:
    """Run the stage; signals to this process reach it too, and it does not outlive this process."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", f"ray_jobs.{stage}", *arguments],
        env={**os.environ, **environment},
        preexec_fn=_begin_child,
    )
    for number in SIGNALS:  # a Ctrl-C at a terminal reaches the stage twice; it heeds the first
        signal.signal(number, lambda number, _: process.send_signal(number))
    code = process.wait()
    for number in SIGNALS:  # what is left to do, the store's end, is short and must not be cut off
        signal.signal(number, signal.SIG_IGN)
    if -code in SIGNALS:  # before it could handle them
        raise Interrupted(f"stopped by {signal.Signals(-code).name}; the same command continues where it was")
    if code < 0:
        print(f"error: {stage} was killed by {signal.Signals(-code).name}; run the same command to continue")
        return 1
    return code


def _begin_child() -> None:
    """Signals wait until the stage can handle them, which is after its imports (`interruptible`)."""
    local_store.end_with_parent()
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


if __name__ == "__main__":
    sys.exit(main())
