"""Memory of the preparation for ten times the input: it streams, so it needs no more.

Stages collect, curate (near duplicates included) and pack are commands, each with a Ray of its own, over the installed
packages in shards of 8 MB. Measured is the greatest sum, over all processes of a command, of the memory that is
theirs (proportional set size, smaps of proc(5)), read five times a second; the peer is a tenth of the input.
What grows is what the driver knows of every document: columns of about 75 bytes, and 17 while near
duplicates are looked for.
"""

import contextlib
import json
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.code import MAX_FILE_BYTES
from benchmarks.harness import Benchmark, Comparison, Target
from benchmarks.runs import Command
from codeparrot.manifest import require_manifest
from codeparrot.storage import open_storage
from ray_jobs.stage import MADE_BY

LARGE_BYTES = 400_000_000
SMALLER = 10
POLL_SECONDS = 0.2
KIB, MB = 1024, 1e6
AGENTS = ("dashboard/agent.py", "runtime_env/agent/main.py", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's helpers on every node. They write their title over their environment, by which a command's processes are known,
so they would be counted at their start and no more later. What they take does not depend on the input."""
NOUNS = ("raw", "curated", "packed")
OVERRIDES = {
    "collect.sources": [{"kind": "packages"}],
    "collect.max_file_bytes": MAX_FILE_BYTES,
    "collect.shard_bytes": 8_000_000,
    "curate.licenses": {"allow": None, "keep_unknown": True},
    "curate.near_dedup": {},
    "pack.max_seq_len": 1024,
}


class Peak:
    """The greatest memory of a command's processes during a `with` block, in bytes."""

    def __init__(self, command: Command) -> None:
        self.size_bytes = 0
        self._command = command
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Peak":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(POLL_SECONDS):
            lines = self._command.processes().items()
            pids = [pid for pid, line in lines if not any(agent in line for agent in AGENTS)]
            self.size_bytes = max(self.size_bytes, sum(map(proportional_bytes, pids)))


def proportional_bytes(pid: int) -> int:
    """The proportional set size of a process; 0 if it has gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * KIB
    return 0


class _Memory(Comparison):
    def __init__(self, folder: Path, large_bytes: int) -> None:
        self._folder, self._large_bytes = folder, large_bytes
        self._peaks: dict[str, list[str]] = {}
        self._tokenizer = folder / "first" / "tokenizer"
        for noun in ("raw", "curated", "tokenizer"):
            self._run(noun, "first", large_bytes // SMALLER)

    def _arguments(self, noun: str, store: str, max_bytes: int) -> Sequence[str]:
        values = {**OVERRIDES, "collect.max_bytes": max_bytes, "storage.uri": str(self._folder / store)}
        overrides = [part for key, value in values.items() for part in ("--set", f"{key}={json.dumps(value)}")]
        return ["-m", f"ray_jobs.{MADE_BY[noun]}", "--config", "recipes/tiny.yaml", *overrides]

    def _run(self, noun: str, store: str, max_bytes: int) -> int:
        with Command(self._arguments(noun, store, max_bytes)) as command, Peak(command) as peak:
            command.finish()
        return peak.size_bytes

    def _peak(self, store: str, max_bytes: int) -> float:
        shutil.copytree(self._tokenizer, self._folder / store / "tokenizer")
        sizes = [self._run(noun, store, max_bytes) for noun in NOUNS]
        counts = require_manifest(open_storage(str(self._folder / store)), "raw", "collect").counts
        parts = ", ".join(f"{MADE_BY[noun]} {size / MB:.0f}" for noun, size in zip(NOUNS, sizes, strict=True))
        self._peaks[store] = [f"{counts['num_documents']:,} documents: {parts} MB"]
        shutil.rmtree(self._folder / store)
        return max(sizes) / MB

    def check(self) -> str:
        """The same documents, whatever there is beside them, would be compared by their bytes elsewhere."""
        return "the stages, the recipe and the size of shards"

    def ours(self) -> float:
        return self._peak("large", self._large_bytes)

    def peer(self) -> float:
        return self._peak("small", self._large_bytes // SMALLER)

    def notes(self) -> list[str]:
        return [line for lines in self._peaks.values() for line in lines]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with tempfile.TemporaryDirectory() as name:
        yield _Memory(Path(name), LARGE_BYTES // (4 if trial else 1))


BENCHMARK = Benchmark(
    title="peak memory of collect, curate and pack, 400 MB against a tenth of it",
    unit="MB",
    peer="the same for a tenth of the input",
    ratio="ours / peer",
    target=Target("<=", 1.1),
    comparison=_comparison,
)
