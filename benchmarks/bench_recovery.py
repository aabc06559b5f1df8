"""From the SIGKILL of a Ray Train worker to the next finished step, against a cold start to the first one.

Cold is from the line "starting" of `python -m ray_jobs.train` (Ray itself starts after it) to the end of the first
step; recovery is Ray noticing the death, new processes, the checkpoint, and a step. Both are taken from one run, cold
first, since a worker must run to be killed. Times are those that the run records of its steps.
"""

import contextlib
import os
import random
import secrets
import signal
import time
from collections.abc import Iterator

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import STEADY, command, trained

NUM_STEPS = 14
CHECKPOINT_STEPS = 4
SETTINGS = (
    f"train.max_steps={NUM_STEPS}",
    "train.log_every_steps=1",
    *STEADY,
    f"train.checkpoint.every_steps={CHECKPOINT_STEPS}",
)


class _Recovery(Comparison):
    def __init__(self, packed: Corpus) -> None:
        self._corpus = packed
        self._chance = random.Random(0)
        self._weights: dict[str, str] = {}
        self._cold = 0.0

    def _run(self, *, kill: bool) -> tuple[float, float]:
        """(seconds of the cold start, seconds of the recovery)."""
        run_name = f"recovery-{secrets.token_hex(4)}"
        killed = float("inf")
        with command(self._corpus, "ray", run_name, SETTINGS) as process:
            started = process.wait_for("starting")
            if kill:
                process.wait_for("checkpoint in")
                workers = [pid for pid, line in process.processes().items() if "RayTrainWorker" in line]
                killed = time.time()
                os.kill(self._chance.choice(sorted(workers)), signal.SIGKILL)
            process.finish()
            if kill != ("the worker group was restarted" in process.output):
                raise RuntimeError(f"restarted: {not kill}\n{process.output}")
        run = trained(self._corpus, run_name, NUM_STEPS)
        self._weights = self._weights or dict(run.weights)
        if run.weights != self._weights:
            raise Unequal("the weights of a run whose worker was killed, and of an undisturbed one")
        times = [event["time"] for event in run.events if event["kind"] == "step"]
        return times[0] - started, min((moment for moment in times if moment > killed), default=killed) - killed

    def check(self) -> str:
        self._run(kill=False)
        self._run(kill=True)
        return f"weights after {NUM_STEPS} steps with and without a kill, bit for bit (all runs)"

    def peer(self) -> float:
        self._cold, self._recovery = self._run(kill=True)
        return self._cold

    def ours(self) -> float:
        return self._recovery


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed:
        yield _Recovery(packed)


BENCHMARK = Benchmark(
    title="seconds from the SIGKILL of a worker to the next step, against a cold start",
    unit="s",
    peer=installed("ray"),
    ratio="ours / peer",
    target=Target("<=", 1.25, 0.8),
    comparison=_comparison,
    first="peer",
    alternate=False,
)
