"""Completions of 64 prompts, against one `generate` call per prompt, and against one padded batch.

The prompts are heads of functions of the installed packages, and every completion gets as many tokens as the body that
its author wrote (at most 128), as if the model had ended where the author did. A padded batch cannot do that: it runs
until its longest row ends, and is cut then. The tokens of all three are the same.
"""

import ast
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.code import documents
from benchmarks.decoding import TRAINING_BYTES, Decoder, decoder
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed, interval
from codeparrot.completion import Request
from codeparrot.engine import Engine, EngineSettings

NUM_PROMPTS, NUM_TRIED_OUT = 64, 8
MIN_TOKENS, MAX_TOKENS = 8, 128
NUM_PADDED_PAIRS = 5
PADDED_TARGET = Target(">=", 1.3)


@dataclass(frozen=True)
class Task:
    """A prompt, and how long its completion may be."""

    ids: list[int]
    max_new_tokens: int


def tasks(model: Decoder, count: int) -> list[Task]:
    """Functions of the code that the tokenizer has seen, evenly spread over it."""
    found = []
    for document in documents(TRAINING_BYTES):
        lines = document.content.splitlines(keepends=True)
        with contextlib.suppress(SyntaxError, RecursionError, ValueError):
            for node in ast.parse(document.content).body:
                if isinstance(node, ast.FunctionDef) and len(node.body) > 1:
                    second = node.body[1].lineno - 1
                    found.append(("".join(lines[node.lineno - 1 : second]), "".join(lines[second : node.end_lineno])))
    chosen = [found[place] for place in np.linspace(0, len(found) - 1, 4 * count).astype(int)]
    encode = model.vocabulary.encode
    pairs = [(encode(head.rstrip()), len(encode(body))) for head, body in chosen]
    fitting = [Task(ids, min(size, MAX_TOKENS)) for ids, size in pairs if size >= MIN_TOKENS and len(ids) <= MAX_TOKENS]
    return fitting[:count]


class _Batched(Comparison):
    def __init__(self, model: Decoder, asked: Sequence[Task]) -> None:
        self._model, self._asked = model, asked
        longest = max(len(task.ids) for task in asked)
        self._ids = torch.tensor([[0] * (longest - len(task.ids)) + task.ids for task in asked])
        self._mask = torch.tensor([[0] * (longest - len(task.ids)) + [1] * len(task.ids) for task in asked])
        self._most = max(task.max_new_tokens for task in asked)

    def _engine(self) -> list[list[int]]:
        engine = Engine(self._model.model, self._model.vocabulary, EngineSettings(max_batch_size=len(self._asked)))
        made = engine.complete(Request(task.ids, task.max_new_tokens, temperature=0) for task in self._asked)
        return [list(each.token_ids) for each in made]

    def _one_by_one(self) -> list[list[int]]:
        made = []
        for task in self._asked:
            ids = torch.tensor([task.ids])
            (new,) = self._model.generate(ids, torch.ones_like(ids), task.max_new_tokens).tolist()
            made.append(new)
        return made

    def _padded(self) -> list[list[int]]:
        new = self._model.generate(self._ids, self._mask, self._most).tolist()
        return [row[: task.max_new_tokens] for row, task in zip(new, self._asked, strict=True)]

    def check(self) -> str:
        ours = self._engine()
        for name, theirs in (("generate, one by one", self._one_by_one()), ("generate, padded", self._padded())):
            other = sum(one != another for one, another in zip(ours, theirs, strict=True))
            if other:
                raise Unequal(f"{other} of {len(ours)} completions of {name}")
        total = sum(map(len, ours))
        return f"all {total:,} tokens of {len(ours)} completions, by the engine, one by one, and in a padded batch"

    def _rate(self, completed: list[list[int]], began: float) -> float:
        return len(completed) / (time.perf_counter() - began)

    def ours(self) -> float:
        began = time.perf_counter()
        return self._rate(self._engine(), began)

    def peer(self) -> float:
        began = time.perf_counter()
        return self._rate(self._one_by_one(), began)

    def _padded_rate(self) -> float:
        began = time.perf_counter()
        return self._rate(self._padded(), began)

    def notes(self) -> list[str]:
        ratios = []
        for number in range(NUM_PADDED_PAIRS):
            sides = (self.ours, self._padded_rate)
            first, second = (side() for side in (sides if number % 2 == 0 else sides[::-1]))
            ratios.append(first / second if number % 2 == 0 else second / first)
        low, high = interval(ratios)
        ratio = float(np.median(ratios))
        said = f"against one padded batch: median of {len(ratios)} ratios {ratio:.4g}"
        return [f"{said}, 95 % interval {low:.4g} to {high:.4g}; {PADDED_TARGET.verdict(ratio)}"]


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    model = decoder()
    yield _Batched(model, tasks(model, NUM_TRIED_OUT if trial else NUM_PROMPTS))


BENCHMARK = Benchmark(
    title="completions per second of 64 prompts, against one `generate` call per prompt",
    unit="completions/s",
    peer=installed("transformers"),
    ratio="ours / peer",
    target=Target(">=", 5),
    comparison=_comparison,
)
"""The padded batch is told in a line of its own."""
