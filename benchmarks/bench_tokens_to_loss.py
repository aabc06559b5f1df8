"""Tokens until a loss is reached: NanoChat with Muon against GPT-2 with AdamW, on the same rows.

A pair is a seed. The peer trains for `NUM_STEPS`, and the validation loss at its end is the goal. Ours is trained for
shares of that, each time from the start and with a schedule that ends there, until one run ends below the goal; between
it and the run before, tokens are interpolated on a line of the loss over log tokens. No run is judged in the middle of
its schedule, where the rate is high and the loss too.

Both sides get the best of the rates that are swept first, on a seed that is not among the pairs: the peer at all of its
tokens, ours at half of them. `notes` says what each change gives alone: the loss of GPT-2 with it, after half.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks.corpus import Corpus, corpus
from benchmarks.harness import Benchmark, Comparison, Target, Unequal, installed
from benchmarks.runs import Watch, fit_here, job_here
from codeparrot.model import ARCHITECTURES, model_config, num_parameters
from codeparrot.throughput import flops_per_token

NUM_STEPS, NUM_TRIAL_STEPS = 400, 12
SHARES = (1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)
"""Of the peer's tokens, one after the other."""
NUM_SEEDS = 3
SWEPT_SEED = 20
NUM_THREADS = 2
NORM_EPSILON = 1e-6
ROTARY_BASE = 10_000.0
MAX_DIFFERENCE = 0.05
"""Between the numbers of parameters."""
SIZE = (
    "model.n_layer=4",
    "model.n_head=4",
    "model.n_embd=128",
    "train.global_batch_size=8",
    "train.micro_batch_size=8",
    "train.log_every_steps=1",
    "train.eval_rows=192",
)
MUON = "train.optimizer=muon"
OURS = ("model.architecture=nanochat", MUON)
PEER_RATES = tuple((f"train.learning_rate={rate}",) for rate in ("1e-3", "2e-3", "4e-3", "8e-3"))
RATES = tuple(
    (f"train.learning_rate={of_adamw}", f"train.muon_learning_rate={of_muon}")
    for of_adamw, of_muon in (("4e-3", "5e-3"), ("4e-3", "1e-2"), ("4e-3", "2e-2"), ("1e-2", "2e-2"))
)


class _Runs(Comparison):
    def __init__(self, packed: Corpus, num_steps: int, num_swept: int) -> None:
        self._corpus = packed
        self._num_steps = num_steps
        self._num_swept = num_swept
        self._seed = SWEPT_SEED
        self._swept: list[str] = []
        self._goal = math.inf
        self._seconds: dict[str, list[float]] = {"ours": [], "peer": []}

    def _run(self, num_steps: int, *settings: str) -> Watch:
        warmup = f"train.warmup_steps={max(1, num_steps // 10)}"
        return fit_here(job_here(self._corpus, num_steps, *SIZE, warmup, f"seed={self._seed}", *settings))

    def _end(self, num_steps: int, *settings: str) -> float:
        return _loss(self._run(num_steps, *settings))

    def check(self) -> str:
        runs = [self._run(2, *settings) for settings in ((), OURS)]
        digests = {next(e["rows_digest"] for e in reversed(run.events) if e["kind"] == "step") for run in runs}
        if len(digests) > 1:
            raise Unequal("the rows of the first steps")
        configs = [self._config(*settings) for settings in ((), OURS)]
        peer, ours = map(num_parameters, configs)
        if abs(ours / peer - 1) > MAX_DIFFERENCE:
            raise Unequal(f"{ours:,} and {peer:,} parameters")
        flops = [flops_per_token(config, count) for config, count in zip(configs, (peer, ours), strict=True)]
        work = flops[1] / flops[0]
        self._peer_rates = self._best(self._num_steps, PEER_RATES)
        self._rates = self._best(self._num_steps // 2, RATES, *OURS)
        return f"the rows of each step; {ours:,} and {peer:,} parameters; {work:.3f} times the work for a token"

    def _best(self, num_steps: int, choices: Sequence[Sequence[str]], *settings: str) -> Sequence[str]:
        losses: dict[tuple[str, ...], float] = {}
        for choice in choices[: self._num_swept]:
            losses[tuple(choice)] = loss = self._end(num_steps, *settings, *choice)
            self._swept.append(f"swept: {' '.join([*settings, *choice])}, {num_steps} steps: {loss:.4f} nats/token")
        return min(losses, key=lambda choice: losses[choice])

    def _config(self, *settings: str) -> Any:
        job = job_here(self._corpus, 1, *SIZE, *settings)
        sizes = {"vocab_size": job.vocab_size, "max_seq_len": job.rows.max_seq_len, "eos_token_id": job.eos_token_id}
        return model_config(job.model, **sizes)

    def peer(self) -> float:
        self._seed += 1
        run = self._run(self._num_steps, *self._peer_rates)
        self._goal = _loss(run)
        self._seconds["peer"].append(run.seconds)
        return self._tokens(self._num_steps)

    def ours(self) -> float:
        before: tuple[float, float] | None = None
        for share in SHARES:
            num_steps = max(2, round(share * self._num_steps))
            run = self._run(num_steps, *OURS, *self._rates)
            loss, tokens = _loss(run), self._tokens(num_steps)
            if loss <= self._goal:
                self._seconds["ours"].append(run.seconds)
                return tokens if before is None else _crossing(before, (tokens, loss), self._goal)
            before = (tokens, loss)
        return math.inf

    def _tokens(self, num_steps: int) -> float:
        return float(num_steps * 8 * self._corpus.packed.counts["max_seq_len"])

    def notes(self) -> Iterator[str]:
        peer, ours = (sum(self._seconds[side]) / max(1, len(self._seconds[side])) for side in ("peer", "ours"))
        yield f"a run that reaches the goal takes {ours:.0f} s, one of the peer {peer:.0f} s"
        yield from self._swept
        yield from self._alone(self._num_steps // 2)

    def _alone(self, half: int) -> Iterator[str]:
        self._seed = SWEPT_SEED
        plain = self._peer_rates
        changes: Mapping[str, tuple[Sequence[str], contextlib.AbstractContextManager[None]]] = {
            "nothing": (plain, contextlib.nullcontext()),
            "Muon": ((MUON, *self._rates), contextlib.nullcontext()),
            "ReLU squared": (plain, _activation("relu2")),
            "normalised queries and keys": (plain, _sdpa(_normalised)),
            "rotary positions besides the learned ones": (plain, _sdpa(_rotated)),
            "all but Muon: NanoChat with AdamW": ((OURS[0], *plain), contextlib.nullcontext()),
            "all": ((*OURS, *self._rates), contextlib.nullcontext()),
        }
        for name, (settings, changed) in changes.items():
            with changed:
                yield f"GPT-2 with {name}, half of the tokens: {self._end(half, *settings):.4f} nats/token"


def _loss(run: Watch) -> float:
    return float(next(event for event in reversed(run.events) if event["kind"] == "evaluation")["validation_loss"])


def _crossing(before: tuple[float, float], after: tuple[float, float], goal: float) -> float:
    """Tokens at which a line through two points (tokens, loss), over log tokens, is at the goal."""
    share = (before[1] - goal) / (before[1] - after[1])
    return math.exp(math.log(before[0]) + share * (math.log(after[0]) - math.log(before[0])))


@contextlib.contextmanager
def _activation(name: str) -> Iterator[None]:
    plain = ARCHITECTURES["gpt2"]
    arguments = plain.arguments
    ARCHITECTURES["gpt2"] = replace(
        plain, arguments=lambda size, eos: {**arguments(size, eos), "activation_function": name}
    )
    yield
    ARCHITECTURES["gpt2"] = plain


@contextlib.contextmanager
def _sdpa(change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Queries and keys go through `change` before they meet."""

    def changed(module: Any, query: Any, key: Any, *rest: Any, **named: Any) -> Any:
        return sdpa_attention_forward(module, change(query), change(key), *rest, **named)

    AttentionInterface.register("sdpa", changed)
    yield
    AttentionInterface.register("sdpa", sdpa_attention_forward)


def _normalised(states: torch.Tensor) -> torch.Tensor:
    return states * torch.rsqrt(states.square().mean(-1, keepdim=True) + NORM_EPSILON)


def _rotated(states: torch.Tensor) -> torch.Tensor:
    """Su et al., "RoFormer" (2021), eq. 34, of whole sequences: shape (B, H, T, D)."""
    length, half = states.shape[2], states.shape[3] // 2
    angles = torch.arange(length)[:, None] * ROTARY_BASE ** (-torch.arange(half) / half)
    first, second = states[..., :half], states[..., half:]
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1)


@contextlib.contextmanager
def _comparison(trial: bool) -> Iterator[Comparison]:
    torch.set_num_threads(NUM_THREADS)
    with corpus() as packed:
        yield _Runs(packed, NUM_TRIAL_STEPS if trial else NUM_STEPS, 1 if trial else len(PEER_RATES))


BENCHMARK = Benchmark(
    title="tokens until the loss that GPT-2 with AdamW reaches",
    unit="tokens",
    peer=installed("transformers"),
    ratio="peer / ours",
    target=Target(">=", 2.0, 3.0),
    comparison=_comparison,
    num_pairs=NUM_SEEDS,
    first="peer",
    alternate=False,
    timed=False,
)
