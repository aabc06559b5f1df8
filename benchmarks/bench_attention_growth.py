"""How attention grows with the length of a row: full, by SDPA, against a window, sparse blocks, and linear.

A sample is a forward and a backward pass of one attention layer, `LONGEST` tokens long. `notes` takes all kinds through
all lengths in turns: median times, what a pass adds to the resident memory at its peak, and the exponent of the length,
fitted on logarithms of all samples (least squares; percentile bootstrap over the repetitions of each length). A fixed
cost of a call makes the exponent smaller, so it is fitted once more on the longer half alone. Last, models with each
kind are trained on the same rows: loss at equal tokens.
"""

import contextlib
import ctypes
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.bench_memory_per_worker import resident_bytes
from benchmarks.corpus import corpus
from benchmarks.harness import NUM_RESAMPLES, SEED, Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import fit_here, job_here
from codeparrot.attention import Reach, blocked_attention, linear_attention

LENGTHS = (512, 1024, 2048, 4096, 8192, 16_384)
TRIAL_LENGTHS = (128, 256, 512)
NUM_REPEATS, NUM_TRIAL_REPEATS = 5, 2
NUM_HEADS, WIDTH = 4, 64
WINDOW = Reach(256, 2, 0, 256)
SPARSE = Reach(64, 4, 32, None)
LINEAR = 1.15
"""The largest exponent that is called linear."""
CHECKED, TOLERANCE = 600, 1e-4
NUM_STEPS, NUM_TRIAL_STEPS = 300, 4
NUM_THREADS = 2
TRAINED = (
    "train.learning_rate=4e-3",
    "train.warmup_steps=30",
    "train.micro_batch_size=8",
    "train.eval_rows=192",
    "model.n_embd=128",
    "model.attention_window=64",
    "model.attention_block=16",
    "model.attention_num_blocks=4",
    "model.attention_num_global=16",
)

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def full(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """All tokens before, by the fused kernel."""
    return F.scaled_dot_product_attention(query, key, value, is_causal=True)


KINDS: Mapping[str, Attention] = {
    "full": full,
    "window": lambda q, k, v: blocked_attention(q, k, v, WINDOW),
    "sparse": lambda q, k, v: blocked_attention(q, k, v, SPARSE),
    "linear": lambda q, k, v: linear_attention(q, k, v)[0],
}


def inputs(length: int) -> list[torch.Tensor]:
    """Queries, keys and values of one row: (1, heads, length, width)."""
    generator = torch.Generator().manual_seed(length)
    shape = (1, NUM_HEADS, length, WIDTH)
    return [torch.randn(shape, generator=generator, requires_grad=True) for _ in range(3)]


def timed(kind: str, states: Sequence[torch.Tensor]) -> float:
    """Seconds of a forward and a backward pass."""
    for each in states:
        each.grad = None
    began = time.perf_counter()
    KINDS[kind](*states).sum().backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - began


def added_bytes(kind: str, length: int) -> int:
    """What a pass adds to the resident memory at its peak."""
    states = inputs(length)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, or a pass would take it without a trace, malloc_trim(3)
    Path("/proc/self/clear_refs").write_text("5")  # the high water begins anew, proc_pid_clear_refs(5)
    before = resident_bytes("VmRSS")
    timed(kind, states)
    return resident_bytes("VmHWM") - before


class _Growth(Comparison):
    def __init__(self, *, trial: bool) -> None:
        self._lengths = TRIAL_LENGTHS if trial else LENGTHS
        self._num_repeats = NUM_TRIAL_REPEATS if trial else NUM_REPEATS
        self._num_steps = NUM_TRIAL_STEPS if trial else NUM_STEPS
        self._longest = inputs(self._lengths[-1])

    def check(self) -> str:
        """Against attention over all pairs, by their definitions."""
        q, k, v = inputs(CHECKED)
        places = torch.arange(CHECKED)
        for name, reach in {"window": WINDOW, "sparse": SPARSE}.items():
            mask = reach.sees(places[:, None], places)
            _require(name, KINDS[name](q, k, v), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
        _require("linear", KINDS["linear"](q, k, v), weights @ v / weights.sum(3, keepdim=True))
        return f"each kind and its definition over all pairs of {CHECKED} tokens, within {TOLERANCE:g}"

    def ours(self) -> float:
        return timed("linear", self._longest)

    def peer(self) -> float:
        return timed("full", self._longest)

    def notes(self) -> Iterator[str]:
        taken: dict[str, list[list[float]]] = {kind: [] for kind in KINDS}
        for length in self._lengths:
            states = inputs(length)
            for kind in KINDS:
                timed(kind, states)
            rounds = [[timed(kind, states) for kind in KINDS] for _ in range(self._num_repeats)]
            for kind, samples in zip(KINDS, zip(*rounds, strict=True), strict=True):
                taken[kind].append(list(samples))
        for kind in KINDS:
            times = ", ".join(f"{1000 * float(np.median(samples)):.3g}" for samples in taken[kind])
            yield f"{kind}: {times} ms at {', '.join(f'{length:,}' for length in self._lengths)} tokens"
            sizes = [added_bytes(kind, length) / 1e6 for length in self._lengths]
            yield f"{kind}: at its peak {', '.join(f'{size:.3g}' for size in sizes)} MB more"
        half = len(self._lengths) // 2
        for kind in KINDS:
            whole, longer = (fitted(self._lengths[first:], taken[kind][first:]) for first in (0, half))
            verdict = "met" if max(whole[2], longer[2]) <= LINEAR else "MISSED"
            target = "" if kind == "full" else f"; target <= {LINEAR:g} with both intervals: {verdict}"
            later = f"from {self._lengths[half]:,} on {_shown(longer)}"
            yield f"{kind}: time grows as length^{_shown(whole)}, {later}{target}"
        with corpus() as packed:
            for kind in ("sdpa", "window", "sparse", "linear"):
                run = fit_here(job_here(packed, self._num_steps, f"model.attention={kind}", *TRAINED))
                loss = next(event for event in reversed(run.events) if event["kind"] == "evaluation")["validation_loss"]
                yield f"GPT-2 with {kind}, {self._num_steps} steps on rows of 256 tokens: {loss:.4f} nats/token"


def fitted(lengths: Sequence[int], samples: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """(exponent, its 95 % interval)."""
    logs = np.log(np.array(samples))  # (lengths, repeats)
    x = np.log(np.array(lengths))
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    random = np.random.default_rng(SEED)
    chosen = random.integers(0, logs.shape[1], (NUM_RESAMPLES, *logs.shape))
    drawn = np.take_along_axis(logs[None], chosen, 2).mean(2) @ weights
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(logs.mean(1) @ weights), float(low), float(high)


def _shown(exponent: tuple[float, float, float]) -> str:
    value, low, high = exponent
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _require(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> None:
    worst = float((ours - theirs).detach().abs().max())
    if not (math.isfinite(worst) and worst <= TOLERANCE):
        raise Unequal(f"{name} differs from its definition by {worst:.2g}")


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    torch.set_num_threads(NUM_THREADS)
    yield _Growth(trial=trial)


BENCHMARK = Benchmark(
    title="full attention against linear attention, forward and backward over 16,384 tokens",
    unit="s",
    peer=installed("torch"),
    ratio="peer / ours",
    target=Target(">=", 5.0, 20.0),
    comparison=_comparison,
)
