"""Each stage as a command: what it prints, and its exit code, when something is wrong."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot.config import dump_recipe, load_recipe
from codeparrot.local_store import LocalStore
from ray_jobs.stage import MADE_BY, guarded, parse, run_stage
from tests.integration.conftest import ROOT, micro_recipe

FAILED, BAD_CONFIGURATION = 1, 2


def write(folder: Path, values: Any) -> str:
    path = folder / "recipe.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def python(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("stage", ["pipeline", *MADE_BY.values(), "local"])
def test_every_stage_prints_the_resolved_recipe_and_stops(stage: str, tmp_path: Path) -> None:
    path = write(tmp_path, micro_recipe())
    done = python("-m", f"ray_jobs.{stage}", "--config", path, "--set", "train.max_steps=77", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["train"]["max_steps"] == 77
    lines = [line for line in done.stdout.splitlines(keepends=True) if not line.startswith("#")]  # but for an estimate
    assert "".join(lines) == dump_recipe(load_recipe(path, ["train.max_steps=77"]))


def test_all_mistakes_of_a_recipe_are_told_at_once_before_anything_starts(tmp_path: Path) -> None:
    values = micro_recipe()
    values["train"] |= {"learning_rate": -1, "max_stepz": 3}
    values["model"]["n_embd"] = "wide"
    values["storage"]["uri"] = "gopher://x"
    del values["pack"]
    done = python("-m", "ray_jobs.pipeline", "--config", write(tmp_path, values))
    assert done.returncode == BAD_CONFIGURATION
    assert done.stdout == ""
    for problem in (
        "5 problems",
        "train.learning_rate: must be > 0, got -1",
        "train.max_stepz: unknown key",
        "model.n_embd: should be a valid integer, unable to parse string as an integer, got 'wide'",
        "storage.uri: ",
        "pack: required key is missing",
    ):
        assert problem in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just words", "a recipe is a mapping of keys to values, got str"),
        ("a: [1", "not valid YAML"),
        ("seed: 1\nseed: 2", "key 'seed' is given twice"),
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
    ],
)
def test_what_is_no_recipe_is_told(text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = parse("test", ["--config", write(tmp_path, text)])
    assert guarded(options, lambda _: None) == BAD_CONFIGURATION
    assert message in capsys.readouterr().err


def test_a_recipe_that_does_not_exist_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(parse("test", ["--config", "absent.yaml"]), lambda _: None) == BAD_CONFIGURATION
    assert "cannot read the recipe absent.yaml: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps", "write key.path=value"),
        ("train.max_steps=[", "not valid YAML"),
        ("collect.sources.kind=directory", "collect.sources is a list; set it as a whole"),
        ("seed.inner=1", "seed is a value, not a mapping"),
    ],
)
def test_a_wrong_override_is_told(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = parse("test", ["--config", write(tmp_path, micro_recipe()), "--set", override])
    assert guarded(options, lambda _: None) == BAD_CONFIGURATION
    assert message in capsys.readouterr().err


def run_in_process(values: Any, folder: Path, stage: str = "collect") -> int:
    from importlib import import_module

    from codeparrot.storage import open_storage

    options = parse("test", ["--config", write(folder, values)])

    def action(recipe: Any) -> None:
        storage = open_storage(recipe.storage.uri)
        storage.check()
        run_stage(import_module(f"ray_jobs.{stage}").STAGE, recipe, storage)

    return guarded(options, action)


def directory_recipe(folder: Path, code: Path) -> Any:
    values = micro_recipe()
    values["storage"] = {"uri": str(folder / "data")}
    values["collect"] = {"sources": [{"kind": "directory", "path": str(code), "license": "MIT"}]}
    return values


def absent(folder: Path) -> None:
    folder.rmdir()


def empty(folder: Path) -> None:
    del folder


def only_strange_files(folder: Path) -> None:
    (folder / "loop.py").symlink_to(folder / "loop.py")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s.py"))
    os.mkfifo(folder / "pipe.py")


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (absent, "folder {code} does not exist"),
        (empty, "folder {code} holds no file that matches *.py"),
        (only_strange_files, "folder {code} holds no file that matches *.py"),
    ],
)
def test_a_source_without_code_is_told(
    prepare: Callable[[Path], None], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    prepare(code)
    assert run_in_process(directory_recipe(tmp_path, code), tmp_path) == FAILED
    error = capsys.readouterr().err
    assert message.format(code=code) in error
    assert error.count("\n") == 1


def test_a_stage_without_its_input_names_the_one_to_run_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_in_process(directory_recipe(tmp_path, tmp_path), tmp_path, "pack") == FAILED
    assert "run `python -m ray_jobs.curate` with this recipe first" in capsys.readouterr().err


def test_a_bucket_that_does_not_exist_is_told(
    s3: LocalStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = micro_recipe()
    values["storage"]["uri"] = "s3://absent/x"
    assert run_in_process(values, tmp_path) == FAILED
    assert "bucket 'absent' does not exist" in capsys.readouterr().err


def test_an_unexpected_error_is_one_line_and_debug_shows_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise KeyError("surprise")

    path = write(tmp_path, micro_recipe())
    assert guarded(parse("test", ["--config", path]), broken) == FAILED
    assert capsys.readouterr().err == "error: unexpected KeyError: 'surprise'; --debug shows where\n"
    assert guarded(parse("test", ["--config", path, "--debug"]), broken) == FAILED
    assert "Traceback" in capsys.readouterr().err
