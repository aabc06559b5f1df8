"""Samples of problems: the same whichever others are made, and none made twice."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from codeparrot.config import Recipe, load_recipe
from codeparrot.engine import Engine, EngineSettings
from codeparrot.errors import ConfigError
from codeparrot.exported import Pretrained
from codeparrot.humaneval import Generation, Problem
from codeparrot.humaneval_samples import HumanEvalSettings, generate
from codeparrot.manifest import Attempt, Manifest
from codeparrot.model import export_files
from codeparrot.storage import LocalStorage
from codeparrot.vocabulary import Vocabulary
from ray_jobs import humaneval
from ray_jobs.pipeline import run_pipeline
from ray_jobs.stage import run_stage
from tests.unit.doubles import DyingStorage, Killed

ROOT = Path(__file__).parents[2]
PROBLEMS = [
    Problem(
        f"Own/{number}",
        f"def times_{number}(x):\n    {'# ' * number}\n",
        f"times_{number}",
        f"    return {number} * x\n",
        f"def check(f):\n    assert f(2) == {2 * number}\n",
    )
    for number in range(5)
]
SETTINGS = HumanEvalSettings(num_samples=3, max_new_tokens=12, temperature=1.0)


def samples(tiny: Pretrained, problems: Sequence[Problem], max_batch_size: int) -> dict[str, list[Generation]]:
    engine = Engine(tiny.model, Vocabulary(tiny.tokenizer), EngineSettings(max_batch_size=max_batch_size))
    return {problem.task_id: made for problem, made in generate(engine, problems, SETTINGS, seed=1)}


def test_a_sample_does_not_depend_on_what_else_is_made(tiny: Pretrained) -> None:
    together = samples(tiny, PROBLEMS, 4)
    assert together == {name: made for each in PROBLEMS for name, made in samples(tiny, [each], 2).items()}
    assert [[each.sample for each in made] for made in together.values()] == [[0, 1, 2]] * 5
    texts = [each.completion for made in together.values() for each in made]
    assert len(set(texts)) == len(texts)
    assert {each.finish_reason for made in together.values() for each in made} == {"length"}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(vars(problem)) + "\n" for problem in PROBLEMS))
    settings = {"problems": str(problems), "num_samples": 3, "max_new_tokens": 12, "temperature": 1.0, "score": None}
    overrides = [f"storage.uri={tmp_path / 'store'}", f"humaneval={json.dumps(settings)}"]
    return load_recipe(ROOT / "recipes/tiny.yaml", overrides)


@pytest.fixture
def trained(recipe: Recipe, tiny: Pretrained, tmp_path: Path) -> LocalStorage:
    """A store with the run that the recipe names."""
    storage = LocalStorage(recipe.storage.uri)
    attempt = Attempt(storage, "train", "runs/tiny", {}, {}, "c0de")
    tiny.tokenizer.save_pretrained(tmp_path / "tokenizer")
    files = export_files(tiny.model) | {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    attempt.commit([attempt.write(f"export/{name}", data) for name, data in files.items()], {})
    return storage


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[LocalStorage], None]:
    """From now on tasks run in this process, one after the other, and write to this store."""

    def run(_: str, items: Sequence[Any], work: Callable[[Any], Any], *__: object, **___: object) -> list[Any]:
        return [work(item) for item in items]

    def use(storage: LocalStorage) -> None:
        monkeypatch.setattr(humaneval, "spread", run)
        monkeypatch.setattr(humaneval, "open_storage", lambda _: storage)

    return use


@pytest.fixture(autouse=True)
def outside_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


def done(recipe: Recipe, storage: LocalStorage) -> Manifest:
    return run_stage(humaneval.STAGE, recipe, storage).manifest


def parts(storage: LocalStorage) -> dict[str, int]:
    """When each was written."""
    return {path: (storage.root / path).stat().st_mtime_ns for path, _ in storage.list("runs/tiny/humaneval/parts/")}


def test_what_a_kill_leaves_is_not_made_again(
    recipe: Recipe, trained: LocalStorage, here: Callable[[LocalStorage], None], tiny: Pretrained
) -> None:
    dying = DyingStorage(recipe.storage.uri, 2)
    here(dying)
    with pytest.raises(Killed):
        done(recipe, trained)
    left = parts(trained)
    assert len(left) == 2
    here(trained)
    manifest = done(recipe, trained)
    assert left.items() <= parts(trained).items()
    assert len(parts(trained)) == 5
    lines = [json.loads(line) for line in manifest.read(trained, "generations.jsonl").splitlines()]
    engine = Engine(tiny.model, Vocabulary(tiny.tokenizer))
    assert recipe.humaneval is not None
    expected = {each.task_id: made for each, made in generate(engine, PROBLEMS, recipe.humaneval, recipe.seed)}
    assert lines == [asdict(made) for problem in PROBLEMS for made in expected[problem.task_id]]
    assert manifest.counts["num_completions"] == len(lines) == 15
    assert (manifest.counts["num_at_limit"], manifest.counts["pass_at_k"]) == (15, None)


def test_other_scoring_makes_nothing_anew_and_other_sampling_all(
    recipe: Recipe, trained: LocalStorage, here: Callable[[LocalStorage], None]
) -> None:
    here(trained)
    done(recipe, trained)
    before = parts(trained)
    assert recipe.humaneval is not None
    scored = recipe.model_copy(update={"humaneval": recipe.humaneval.model_copy(update={"score": SETTINGS.score})})
    manifest = done(scored, trained)
    assert parts(trained) == before
    results = [json.loads(line) for line in manifest.read(trained, "results.jsonl").splitlines()]
    assert len(results) == 15
    assert manifest.counts["num_passed"] == sum(result["passed"] for result in results)
    assert set(manifest.counts["pass_at_k"]) == {"1"}
    warmer = recipe.model_copy(update={"humaneval": recipe.humaneval.model_copy(update={"temperature": 0.5})})
    done(warmer, trained)
    assert not set(parts(trained)) & set(before)
    assert len(parts(trained)) == 5


def test_no_program_runs_beside_ray_on_kubernetes(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert humaneval.plan(recipe)[1] == PROBLEMS  # whose score is null
    with pytest.raises(ConfigError, match=r"humaneval\.score: must be null on Kubernetes"):
        humaneval.plan(recipe.model_copy(update={"humaneval": None}))
    asked = recipe.model_copy(update={"humaneval": HumanEvalSettings()})
    storage = LocalStorage(recipe.storage.uri)
    with pytest.raises(ConfigError, match="null on Kubernetes"):
        run_pipeline(asked, storage)
    assert not list(storage.list("")), "said before anything is made"


def test_tasks_fill_batches_and_keep_all_workers_busy() -> None:
    problems = [Problem(f"{number}", "x" * number, "f", "", "") for number in range(164)]
    many = humaneval.chunks(problems, HumanEvalSettings(num_samples=200))
    assert [len(chunk) for chunk in many] == [1] * 164
    few = humaneval.chunks(problems, HumanEvalSettings(num_samples=1, num_workers=4))
    assert max(map(len, few)) == 11
    assert [problem for chunk in few for problem in chunk] == problems[::-1]
