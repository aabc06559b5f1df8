"""Training runs of the tiny recipe: as commands, as a person starts them, and inside this process."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.corpus import ROOT, STATE, Corpus
from benchmarks.harness import Unequal
from codeparrot.checkpoint import CheckpointStore, Identity
from codeparrot.dataloader import PackedRows
from codeparrot.manifest import load_manifest
from codeparrot.parallel import World
from codeparrot.storage import open_storage
from codeparrot.train import fit
from codeparrot.training_job import TrainingJob, Unsupervised

DEADLINE_SECONDS = 600.0
NEVER = 100_000_000
NUM_WORKERS = 4
STEADY = (f"train.eval_every_steps={NEVER}", "train.eval_rows=8", f"train.checkpoint.every_steps={NEVER}")
"""Nothing but steps, until the last one."""
MARKER = "CODEPARROT_BENCH"

RANKS = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={NUM_WORKERS}")
Launcher = Literal["ray", "torchrun", "alone"]
COMMANDS: Mapping[Launcher, tuple[Sequence[str], int]] = {
    "ray": (("-m", "ray_jobs.train"), 1),
    "torchrun": ((*RANKS, "-m", "codeparrot.launch"), 1),
    "alone": (("-m", "codeparrot.launch"), 2),
}
"""Arguments of Python, and threads of a process that computes."""


@dataclass
class Command:
    """A process of ours, and all that it starts; what it prints is read as it comes."""

    arguments: Sequence[str]
    num_threads: int = 1
    lines: list[tuple[float, str]] = field(default_factory=list)
    """(when it came, what was printed)"""
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    """Stands in the environment of all its processes."""
    process: "subprocess.Popen[str]" = field(init=False)

    def __enter__(self) -> "Command":
        threads = {"OMP_NUM_THREADS": str(self.num_threads), "MKL_NUM_THREADS": str(self.num_threads)}
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=ROOT,
            env={**os.environ, **threads, MARKER: self.mark, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.time(), line.rstrip()))

    def wait_for(self, words: str, after: int = 0) -> float:
        """When a line with these words was printed; lines before `after` do not count."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while time.monotonic() < deadline:
            ended = self.process.poll() is not None
            for moment, line in self.lines[after:]:
                if words in line:
                    return moment
            if ended:
                break
            time.sleep(0.005)
        raise RuntimeError(f"no line with {words!r} in the output:\n{self.output}")

    def finish(self) -> None:
        """Wait for its end, which must be a success."""
        code = self.process.wait(DEADLINE_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        if code:
            raise RuntimeError(f"{' '.join(self.arguments)} ended with {code}:\n{self.output}")

    @property
    def output(self) -> str:
        """All that it has printed."""
        return "\n".join(line for _, line in self.lines)

    def processes(self) -> dict[int, str]:
        """Its living processes, with their command lines."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{MARKER}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        found.pop(os.getpid(), None)
        return found


def on_ranks(module: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """What the ranks of a program measure, as JSON in files rank-*.json of the folder that is its last argument."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, *RANKS, "-m", module, *arguments, folder],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return [json.loads(path.read_text()) for path in sorted(Path(folder).glob("rank-*.json"))]


@dataclass(frozen=True)
class Trained:
    """What a run has told and learned."""

    events: Sequence[Mapping[str, Any]]
    weights: Mapping[str, str]
    """SHA-256 by file of the last checkpoint."""

    @property
    def losses(self) -> list[float]:
        """Of the logged steps."""
        return [event["loss"] for event in self.events if event["kind"] == "step"]

    @property
    def steady_tokens_per_second(self) -> float:
        """Over the second half of the run."""
        steps = [event for event in self.events if event["kind"] == "step"]
        first, last = steps[len(steps) // 2 - 1], steps[-1]
        return float((last["tokens_seen"] - first["tokens_seen"]) / (last["time"] - first["time"]))


def command(corpus: Corpus, how: Launcher, run_name: str, overrides: Sequence[str]) -> Command:
    """A run of the tiny recipe, not started yet."""
    arguments, num_threads = COMMANDS[how]
    return Command([*arguments, *corpus.arguments(run_name, overrides)], num_threads)


def trained(corpus: Corpus, run_name: str, num_steps: int) -> Trained:
    """What a run of so many steps has left in the store; it is deleted there."""
    storage = corpus.storage
    last = load_manifest(storage, f"runs/{run_name}/checkpoints/step-{num_steps:08d}")
    assert last is not None, f"{run_name} has written no checkpoint of step {num_steps}"
    events = [json.loads(line) for line in last.read(storage, "metrics.jsonl").splitlines()]
    weights = {file.name: file.sha256 for file in last.files if file.name.startswith("model-")}
    corpus.forget(run_name)
    return Trained(events, weights)


def train(corpus: Corpus, how: Launcher, num_steps: int, *overrides: str) -> Trained:
    """A whole run of nothing but steps."""
    run_name = f"{how}-{secrets.token_hex(4)}"
    settings = [f"train.max_steps={num_steps}", "train.warmup_steps=10", *STEADY, *overrides]
    with command(corpus, how, run_name, settings) as process:
        process.finish()
    return trained(corpus, run_name, num_steps)


class Watch(Unsupervised):
    """Keeps what a run tells, and when."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def observe(self, event: Mapping[str, Any]) -> None:
        self.events.append({**event, "moment": time.perf_counter()})

    @property
    def seconds(self) -> float:
        """From the beginning of training to the last step that was logged."""
        begin = next(event for event in self.events if event["kind"] == "training")
        return float(next(e for e in reversed(self.events) if e["kind"] == "step")["moment"] - begin["moment"])

    @property
    def losses(self) -> list[float]:
        """Of the logged steps."""
        return [event["loss"] for event in self.events if event["kind"] == "step"]


def fit_here(job: TrainingJob) -> Watch:
    """Train in this process, from the start, with checkpoints in a temporary folder."""
    watch = Watch()
    with tempfile.TemporaryDirectory(prefix="codeparrot-bench-") as folder:
        store = CheckpointStore(open_storage(folder), "runs/here", Identity({}, {}))
        fit(replace(job, checkpoints=store), World(), watch)
    return watch


def job_here(corpus: Corpus, num_steps: int, *overrides: str) -> TrainingJob:
    """A run of nothing but steps in this process."""
    settings = [f"train.max_steps={num_steps}", "train.warmup_steps=10", *STEADY, *overrides]
    recipe = corpus.recipe("here", *settings)
    return TrainingJob(
        model=recipe.model,
        train=recipe.train,
        seed=recipe.seed,
        vocab_size=corpus.packed.counts["vocab_size"],
        eos_token_id=corpus.packed.counts["eos_token_id"],
        rows=rows_in(corpus, STATE / "cache"),
        validation=rows_in(corpus, STATE / "cache", "validation"),
        checkpoints=CheckpointStore(corpus.storage, "runs/here", Identity({}, {})),
    )


@contextlib.contextmanager
def empty_cache() -> Iterator[Path]:
    """A new folder on the disk of the usual cache."""
    with tempfile.TemporaryDirectory(prefix="cache-", dir=STATE) as folder:
        yield Path(folder)


def rows_in(corpus: Corpus, cache: Path, split: str = "train") -> PackedRows:
    """Packed rows through this cache."""
    return PackedRows(corpus.storage, corpus.packed, split, cache)


def require_close(ours: Sequence[float], peer: Sequence[float], tolerance: float, what: str) -> str:
    """What was compared. Raises Unequal if a pair differs by more than this share."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, peer, strict=True))
    if not worst <= tolerance:
        raise Unequal(f"{what} differ by {worst:.2g}, more than {tolerance:g}: {list(ours)} and {list(peer)}")
    return f"{len(ours)} {what}, within {worst:.1e} of each other"
