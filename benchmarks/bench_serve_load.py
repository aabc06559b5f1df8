"""Eight clients of a served model at once, against the same server that serves one request at a time.

Both answer the same greedy requests first, and must say the same. Then clients stream completions for as long as a
sample lasts, each beginning with its next when one has ended. A sample is the requests answered per second. The lines
at the end say how many were lost, how long first tokens took, and how many requests took over five times the median.
"""

import contextlib
import itertools
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import openai

from benchmarks.code import documents
from benchmarks.harness import Benchmark, Comparison, Target, Unequal
from benchmarks.serving import MODEL, served_model, server

NUM_CLIENTS = 8
NUM_TOKENS = 32
SECONDS = 120.0
TRIAL_SECONDS = 5.0
NUM_PROMPTS = 64
PROMPT_CHARACTERS = 200
MAX_TIMES_MEDIAN = 5.0


@dataclass
class Load:
    """What the clients of one side have seen, over all samples."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    lost: int = 0

    def line(self, side: str) -> str:
        """In figures."""
        p99 = sorted(self.first)[int(0.99 * (len(self.first) - 1))]
        return (
            f"{side}: {len(self.whole)} requests answered, {self.lost} lost; first token p50 "
            f"{statistics.median(self.first):.3f} s, p99 {p99:.3f} s, {late(self.first)} over 5 x p50; whole p50 "
            f"{statistics.median(self.whole):.3f} s, longest {max(self.whole):.3f} s, {late(self.whole)} over 5 x p50"
        )


def late(seconds: Sequence[float]) -> int:
    """How many took longer than five times the median."""
    return sum(each > MAX_TIMES_MEDIAN * statistics.median(seconds) for each in seconds)


@dataclass
class Serving(Comparison):
    """Two servers of one model."""

    clients: dict[str, openai.OpenAI]
    prompts: Sequence[str]
    seconds: float
    loads: dict[str, Load] = field(default_factory=lambda: {"ours": Load(), "peer": Load()})

    def check(self) -> str:
        said = {
            side: [self._completion(client, prompt) for prompt in self.prompts] for side, client in self.clients.items()
        }
        if said["ours"] != said["peer"]:
            raise Unequal("greedy completions differ")
        return f"{len(self.prompts)} greedy completions of {NUM_TOKENS} tokens"

    def ours(self) -> float:
        return self._loaded("ours")

    def peer(self) -> float:
        return self._loaded("peer")

    def notes(self) -> Sequence[str]:
        ours = self.loads["ours"]
        met = not (ours.lost or late(ours.first) or late(ours.whole))
        lines = [load.line(side) for side, load in self.loads.items()]
        return [*lines, f"target none lost, none over 5 x p50: {'met' if met else 'MISSED'}"]

    @staticmethod
    def _completion(client: openai.OpenAI, prompt: str) -> str:
        answer = client.completions.create(model=MODEL, prompt=prompt, max_tokens=NUM_TOKENS, temperature=0)
        return answer.choices[0].text

    def _loaded(self, side: str) -> float:
        """Requests answered per second."""
        client, load = self.clients[side], self.loads[side]
        numbers, deadline = itertools.count(), time.monotonic() + self.seconds
        answered: list[float] = []
        lock = threading.Lock()

        def ask() -> None:
            while time.monotonic() < deadline:
                with lock:
                    number = next(numbers)
                began = time.monotonic()
                first, reason = None, None
                with contextlib.suppress(openai.OpenAIError):
                    prompt = self.prompts[number % len(self.prompts)]
                    for part in client.completions.create(
                        model=MODEL, prompt=prompt, max_tokens=NUM_TOKENS, seed=number, stream=True
                    ):
                        first = first or time.monotonic()
                        reason = part.choices[0].finish_reason
                ended = time.monotonic()
                with lock:
                    if first is None or reason is None:
                        load.lost += 1
                    else:
                        answered.append(ended)
                        load.first.append(first - began)
                        load.whole.append(ended - began)

        began = time.monotonic()
        threads = [threading.Thread(target=ask) for _ in range(NUM_CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(answered) / (max(answered) - began)


@contextlib.contextmanager
def comparison(trial: bool) -> Iterator[Serving]:
    """Both servers, each in a thread of this process; the one that is not asked takes no time."""
    texts = [document.content[:PROMPT_CHARACTERS] for document in itertools.islice(documents(), NUM_PROMPTS)]
    served = served_model(trial)
    with server(served, max_batch_size=NUM_CLIENTS) as ours, server(served, max_batch_size=1) as peer:
        clients = {
            side: openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=600)
            for side, url in (("ours", ours), ("peer", peer))
        }
        yield Serving(clients, texts[: 8 if trial else NUM_PROMPTS], TRIAL_SECONDS if trial else SECONDS)


BENCHMARK = Benchmark(
    title=f"completions of {NUM_TOKENS} tokens, streamed to {NUM_CLIENTS} clients",
    unit="requests/s",
    peer="one request at a time",
    ratio="ours / peer",
    target=Target(">=", 1.0),
    comparison=comparison,
    num_pairs=2,
)
