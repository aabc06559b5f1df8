"""The memory of a worker while it trains, against what training needs on paper.

Measured: the high water of a process's resident memory during steps, beyond its resident memory right after all
imports; the largest of four ranks. On paper, for P parameters in fp32, L layers of width h, vocabulary V, and n tokens
in a micro-batch (Korthikanti et al., "Reducing Activation Recomputation in Large Transformer Models", 2022, section
4, without dropout masks and in 4 instead of 2 bytes; flash attention (Dao et al., 2022) keeps no matrix of scores, but
one number for each of a heads and each token):

    weights 4 P, gradients 4 P, moments of AdamW 8 P
    layers      4 n L (16 h + a)    2 inputs of norms, 1 of the projection to q, k, v, these 3, 1 of the output
                                    projection, 1 + 4 of the two matrices of the MLP, 4 of its activation function
    head        4 n (2 h + V)       inputs of the last norm and of the head; the logits
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal
from benchmarks.runs import on_ranks
from codeparrot.model import ModelSettings

NUM_STEPS, NUM_TRIAL_STEPS = 16, 3
KIB, MB = 1024, 1e6


def paper_bytes(model: ModelSettings, vocab_size: int, max_seq_len: int, rows: int) -> tuple[int, int]:
    """(weights, gradients and moments, activations) of a micro-batch of so many rows."""
    h, n = model.n_embd, rows * max_seq_len
    layer = 12 * h * h + 13 * h  # matrices, biases and norms of GPT-2
    parameters = vocab_size * h + max_seq_len * h + model.n_layer * layer + 2 * h
    layers = n * model.n_layer * (16 * h + model.n_head)
    return 16 * parameters, 4 * (layers + n * (2 * h + vocab_size))


class _Memory(Comparison):
    def __init__(self, packed: Corpus, num_steps: int) -> None:
        self._corpus = packed
        self._num_steps = num_steps
        recipe = packed.recipe("here")
        counts = packed.packed.counts
        self._states, self._activations = paper_bytes(
            recipe.model, counts["vocab_size"], counts["max_seq_len"], recipe.train.micro_batch_size
        )

    def _run(self, mode: str, **environment: str) -> list[dict[str, float]]:
        return on_ranks("benchmarks.memory_worker", mode, str(self._num_steps), self._corpus.uri, **environment)

    def check(self) -> str:
        states = self._run("steps")[0]["state_bytes"]
        if states != self._states:
            raise Unequal(f"weights, gradients and moments are {states:,} bytes, on paper {self._states:,}")
        return f"weights, gradients and moments have {self._states / MB:.1f} MB in tensors and on paper"

    def ours(self) -> float:
        return max(rank["peak_bytes"] for rank in self._run("steps")) / MB

    def peer(self) -> float:
        return (self._states + self._activations) / MB

    def notes(self) -> list[str]:
        ranks = self._run("steps")
        first = ranks[0]
        tensors = first["state_bytes"] + first["saved_bytes"]
        whole = max(rank["peak_bytes"] for rank in self._run("checkpoints")) / MB
        fixed = max(rank["peak_bytes"] for rank in self._run("steps", MALLOC_MMAP_THRESHOLD_="1048576")) / MB
        return [
            f"on paper: {self._states / MB:.1f} MB of state, {self._activations / MB:.1f} MB of activations",
            f"state and what autograd keeps for the backward pass, counted in tensors: {tensors / MB:.1f} MB",
            f"after the imports: {first['import_bytes'] / MB:.0f} MB; with checkpoints under way: {whole:.0f} MB",
            f"with MALLOC_MMAP_THRESHOLD_ of 1 MiB, by which freed tensors go back at once: {fixed:.0f} MB",
        ]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    with corpus() as packed:
        yield _Memory(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS)


def resident_bytes(name: str) -> int:
    """`VmRSS`, or `VmHWM`, its high water, of this process (proc_pid_status(5))."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * KIB


BENCHMARK = Benchmark(
    title="peak memory of a worker beyond its imports, against what training needs on paper",
    unit="MB",
    peer="arXiv:2205.05198==v1",
    ratio="ours / peer",
    target=Target("<=", 1.15),
    comparison=_comparison,
)
