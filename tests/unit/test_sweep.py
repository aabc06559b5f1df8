"""Which runs of a study are made, and which are not made again. Stages are stood in for by what they would commit."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot.config import Recipe
from codeparrot.manifest import Manifest, canonical
from codeparrot.storage import LocalStorage, Storage, sha256_hex
from codeparrot.study import load_study
from ray_jobs import local, sweep
from ray_jobs.stage import Outcome, Stage
from tests.unit.packed_store import commit

TINY = Path("recipes/tiny.yaml").absolute()
VOCABULARY = {"name": "vocabulary", "key": "tokenizer.vocab_size", "values": [1024, 2048]}
RATE = {"name": "rate", "key": "train.learning_rate", "values": [1e-3, 2e-3]}


class Stages:
    """Commits what each stage would, and keeps which ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.source = "v1"
        self.dies_at = ""

    def __call__(self, stage: Stage, recipe: Recipe, storage: Storage) -> Outcome:
        name = stage.name if stage in sweep.ROWS else f"{stage.name} {recipe.run_name}"
        if name == self.dies_at:
            raise KeyboardInterrupt
        self.ran.append(name)
        manifest = getattr(self, f"_{stage.makes}")(stage, recipe, storage)
        return Outcome(stage.name, "done", 1.0, manifest, ("", ""))

    def _made(self, stage: Stage, recipe: Recipe, storage: Storage, counts: dict[str, Any], **files: bytes) -> Manifest:
        return commit(storage, stage.name, recipe.prefix_of(stage.makes), files, counts)

    def _raw(self, stage: Stage, recipe: Recipe, storage: Storage) -> Manifest:
        return self._made(stage, recipe, storage, {"source": self.source})

    _curated = _raw

    def _tokenizer(self, stage: Stage, recipe: Recipe, storage: Storage) -> Manifest:
        return self._made(stage, recipe, storage, {"vocab_size": recipe.tokenizer.vocab_size})

    def _packed(self, stage: Stage, recipe: Recipe, storage: Storage) -> Manifest:
        rows = sha256_hex(canonical([self.source, recipe.tokenizer.vocab_size]))
        made = self._made(stage, recipe, storage, {"rows": rows, "splits": {"train": {"tokens_in_rows": 10_000}}})
        values = {**json.loads(made.to_json()), "inputs": {"curated": self.source}}
        storage.write("packed/manifest.json", json.dumps(values).encode())
        return made

    def _run(self, stage: Stage, recipe: Recipe, storage: Storage) -> Manifest:
        return self._made(stage, recipe, storage, {"num_parameters": 1000, "num_steps": recipe.train.max_steps})

    def _evaluation(self, stage: Stage, recipe: Recipe, storage: Storage) -> Manifest:
        bits = 1 + abs(math.log(recipe.train.learning_rate / 2e-3))
        rows: list[dict[str, Any]] = [
            {"name": name, "bits_per_byte": bits, "num_bytes": 100} for name in ("one", "two")
        ]
        rows.append({"name": "unseen", "bits_per_byte": None, "num_bytes": 0})
        counts = {"bits_per_byte": bits, "loss": bits, "intervals": {"bits_per_byte": None}}
        files = {"breakdown.json": json.dumps({"by_repository": rows}).encode()}
        return commit(storage, stage.name, recipe.prefix_of(stage.makes), files, counts)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    made = Stages()
    monkeypatch.setattr(sweep, "run_stage", made)
    return made


@pytest.fixture
def study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("CODEPARROT_STATE", str(tmp_path / "state"))

    def write(*axes: Any, **values: Any) -> Path:
        settings = {"storage.uri": str(tmp_path / "store"), "train.max_steps": 5, **values}
        path = tmp_path / "study.yaml"
        study = {"study_name": "mine", "recipe": str(TINY), "set": settings, "axes": list(axes)}
        path.write_text(yaml.safe_dump(study))
        return path

    return write


ROWS = ["collect", "curate", "train_tokenizer", "pack"]


def runs(stages: Stages) -> list[str]:
    """What ran since the last call."""
    ran, stages.ran = stages.ran, []
    return ran


def made(*names: str) -> list[str]:
    return [f"{stage} mine-{name}" for name in names for stage in ("train", "evaluate")]


def test_a_study_that_is_done_runs_nothing(stages: Stages, study_file: Callable[..., Path], tmp_path: Path) -> None:
    path = study_file(RATE)
    assert sweep.main(["--config", str(path)]) == 0
    assert runs(stages) == [*ROWS, *made("1e-3", "2e-3")]
    assert sweep.main(["--config", str(path)]) == 0
    assert runs(stages) == []
    found = json.loads((tmp_path / "state" / "studies" / "mine" / "results.json").read_text())
    assert found["best"] == "mine-2e-3"
    assert [run["tokens"] for run in found["runs"]] == [5 * 8 * 256] * 2
    assert LocalStorage(str(tmp_path / "store")).read("studies/mine/study.html").startswith(b"<!DOCTYPE html>")


def test_a_killed_study_goes_on_where_it_was(stages: Stages, study_file: Callable[..., Path]) -> None:
    path = study_file(RATE)
    stages.dies_at = "evaluate mine-2e-3"
    with pytest.raises(KeyboardInterrupt):
        sweep.run_all(load_study(path), LocalStorage(load_study(path).uri))
    assert runs(stages) == [*ROWS, *made("1e-3"), "train mine-2e-3"]
    stages.dies_at = ""
    assert sweep.main(["--config", str(path)]) == 0
    assert runs(stages) == [*ROWS, *made("2e-3")]


def test_a_value_that_is_added_is_all_that_is_made(stages: Stages, study_file: Callable[..., Path]) -> None:
    sweep.main(["--config", str(study_file(RATE))])
    runs(stages)
    sweep.main(["--config", str(study_file({**RATE, "values": [1e-3, 2e-3, 4e-3]}))])
    assert runs(stages) == [*ROWS, *made("4e-3")]


def test_other_settings_or_another_corpus_make_runs_again(stages: Stages, study_file: Callable[..., Path]) -> None:
    sweep.main(["--config", str(study_file(RATE))])
    runs(stages)
    sweep.main(["--config", str(study_file(RATE, **{"train.max_steps": 6}))])
    assert runs(stages) == [*ROWS, *made("1e-3", "2e-3")]
    stages.source = "v2"
    sweep.main(["--config", str(study_file({**RATE, "values": [1e-3, 2e-3, 4e-3]}, **{"train.max_steps": 6}))])
    assert runs(stages) == [*ROWS, *made("1e-3", "2e-3", "4e-3")]


def test_rows_are_made_once_for_all_runs_that_share_them(stages: Stages, study_file: Callable[..., Path]) -> None:
    path = study_file(RATE, VOCABULARY)
    sweep.main(["--config", str(path)])
    assert runs(stages) == [
        *(*ROWS, *made("1e-3-1024", "2e-3-1024")),
        *(*ROWS, *made("1e-3-2048", "2e-3-2048")),
    ]
    sweep.main(["--config", str(path)])  # the store has the rows of the other vocabulary now
    assert runs(stages) == []


def test_a_dry_run_lists_the_runs(study_file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--config", str(study_file(RATE)), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "mine-1e-3" in out
    assert out.splitlines()[-1].startswith("2 runs, ")


def test_a_wrong_study_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep.main(["--config", str(tmp_path / "absent.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: cannot read the study ")


def test_the_launcher_finds_the_store_of_a_study(study_file: Callable[..., Path], tmp_path: Path) -> None:
    options = local.COMMANDS["sweep"]("local sweep", ["--config", str(study_file(RATE))])
    assert local._uri("sweep", options) == str(tmp_path / "store")
