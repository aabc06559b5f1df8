"""Samples of HumanEval's problems, tokens per second, against the original script's loop: one batch per problem.

The peer is what the original CodeParrot did for pass@k, written plainly: of one problem after the other, a batch of ten
samples by `generate`, which ends when every row of it has said a stop sequence. Greedy samples of both are the same.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import torch

from benchmarks.decoding import Decoder, decoder
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from codeparrot.engine import Engine, EngineSettings
from codeparrot.humaneval import Problem, read_problems, truncate
from codeparrot.humaneval_samples import HumanEvalSettings, generate, requests

NUM_PROBLEMS, NUM_TRIED_OUT = 32, 4
NUM_COMPARED = 4
SETTINGS = HumanEvalSettings(num_samples=10, max_new_tokens=128, engine=EngineSettings(max_batch_size=64))


class _Samples(Comparison):
    def __init__(self, model: Decoder, problems: Sequence[Problem]) -> None:
        self._model, self._problems = model, problems

    def _engine(self) -> Engine:
        return Engine(self._model.model, self._model.vocabulary, SETTINGS.engine)

    def check(self) -> str:
        greedy = SETTINGS.model_copy(update={"temperature": 0.0, "num_samples": 1})
        compared = self._problems[:NUM_COMPARED]
        ours = {problem.task_id: made for problem, (made,) in generate(self._engine(), compared, greedy, seed=0)}
        for problem in compared:
            (theirs,) = self._batch(problem, do_sample=False, num_return_sequences=1)
            text = truncate(self._model.vocabulary.decode(theirs), SETTINGS.stop)
            if text != ours[problem.task_id].completion:
                raise Unequal(f"the greedy sample of {problem.task_id}")
        return f"the greedy samples of {len(compared)} problems"

    def _batch(self, problem: Problem, **how: object) -> list[list[int]]:
        """One batch of one problem, each row up to its end."""
        request = next(requests(self._engine(), problem, SETTINGS, seed=0))
        room = self._model.model.config.n_positions - request.max_new_tokens
        ids = torch.tensor([list(request.prompt_ids)[-room:]])
        tokenizer = self._model.vocabulary.tokenizer
        stops = {"stop_strings": list(SETTINGS.stop), "tokenizer": tokenizer}
        rows = self._model.generate(ids, torch.ones_like(ids), request.max_new_tokens, **stops, **how).tolist()
        ends = self._model.vocabulary.eos_ids
        return [row[: next((place for place, token in enumerate(row) if token in ends), None)] for row in rows]

    def ours(self) -> float:
        began = time.perf_counter()
        engine = self._engine()
        for problem in sorted(self._problems, key=lambda each: -len(each.prompt)):
            for request in requests(engine, problem, SETTINGS, seed=0):
                engine.add(request)
        num_tokens = 0
        while not engine.idle:
            num_tokens += len(engine.step())
        return num_tokens / (time.perf_counter() - began)

    def peer(self) -> float:
        torch.manual_seed(0)
        how = {"do_sample": True, "temperature": SETTINGS.temperature, "top_p": SETTINGS.top_p, "top_k": 0}
        began = time.perf_counter()
        batches = [self._batch(problem, num_return_sequences=SETTINGS.num_samples, **how) for problem in self._problems]
        return sum(len(row) for batch in batches for row in batch) / (time.perf_counter() - began)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    yield _Samples(decoder(), read_problems()[: NUM_TRIED_OUT if trial else NUM_PROBLEMS])


BENCHMARK = Benchmark(
    title="samples of HumanEval's problems, tokens/s, against one batch per problem",
    unit="tokens/s",
    peer=installed("transformers"),
    ratio="ours / peer",
    target=Target(">=", 2),
    comparison=_comparison,
)
