"""What the command line of `compare` names, and what it refuses."""

from pathlib import Path

import pytest

from codeparrot.compare import CompareSettings
from codeparrot.errors import ConfigError
from codeparrot.storage import LocalStorage
from ray_jobs import local
from ray_jobs.compare import data_sets, main, named_models, parse, read_prompts, store_of
from tests.unit.packed_store import commit, curate

SETTINGS = CompareSettings()


def refusal(*models: str) -> str:
    with pytest.raises(ConfigError) as caught:
        named_models(models, None)
    return str(caught.value)


def test_a_comparison_takes_two_different_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal("tiny") == "compare: name two models or more, got only tiny"
    assert "tiny is named twice" in refusal("tiny", "other", "tiny")
    assert main(["tiny"]) == 2
    assert capsys.readouterr().err.startswith("error: compare: name two models or more")


def test_models_are_recipes_runs_addresses_or_folders(storage: LocalStorage) -> None:
    commit(storage, "train", "runs/mine", {}, {})
    wanted = ["recipes/tiny.yaml", "mine", "mine@7", "s3://b/base/runs/far/checkpoints/step-00000120", "models/gpt2/"]
    found = named_models(wanted, storage.uri)
    assert [model.name for model in found] == ["tiny", "mine", "mine@7", "far@120", "gpt2"]
    assert [model.store for model in found] == ["s3://codeparrot/tiny", storage.uri, storage.uri, "s3://b/base", None]
    assert found[0].where == "s3://codeparrot/tiny/runs/tiny"
    assert found[4].where == "models/gpt2/"


def test_models_of_one_name_are_told_apart() -> None:
    found = named_models(["a/export", "b/export", "c"], None)
    assert [model.name for model in found] == ["export-1", "export-2", "c"]


def test_prompts_stand_on_lines_or_in_json(tmp_path: Path) -> None:
    plain, lines = tmp_path / "prompts.txt", tmp_path / "prompts.jsonl"
    plain.write_text("When they came back\n\ndef f():\\n    return\n")
    lines.write_text('"a\\nb"\n{"prompt": "c", "task_id": 1}\n')
    assert read_prompts(plain) == ["When they came back", "def f():\n    return"]
    assert read_prompts(lines) == ["a\nb", "c"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"\n  \n", "it holds no prompt; write one on each line"),
        ("p.jsonl", b"", "it holds no prompt"),
        ("p.jsonl", b"no json\n", "a line is neither a string nor"),
        ("p.jsonl", b"7\n", "a line is neither a string nor"),
        ("p.jsonl", b'{"prompt": 7}\n', "a line is neither a string nor"),
        ("p.txt", b"\xff\xfe", "cannot be read: it is not UTF-8"),
        ("p.txt", None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=f"--prompts .*{name}: .*{message}"):
        read_prompts(tmp_path / name)


def test_data_are_the_held_out_documents_of_a_store_or_files(storage: LocalStorage, tmp_path: Path) -> None:
    curate(storage, [[("a", "a.py", "x = 1\n")]], [("b", "b.py", "y = 2\n")])
    (tmp_path / "code" / "inner").mkdir(parents=True)
    (tmp_path / "code" / "inner" / "c.py").write_text("z = 3\n")
    (tmp_path / "code" / "binary.py").write_bytes(b"\0\1")
    (tmp_path / "one.txt").write_text("When they came back.\n")
    found = data_sets([storage.uri, str(tmp_path / "code"), str(tmp_path / "one.txt"), storage.uri], SETTINGS)
    assert [[text.content for text in each.texts] for each in found] == [
        ["y = 2\n"],
        ["z = 3\n"],
        ["When they came back.\n"],
    ]
    assert [each.measured.name for each in found] == ["store", "code", "one.txt"]
    assert found[2].measured.num_bytes.tolist() == [21]


def test_data_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model is a run of a store"):
        data_sets([], SETTINGS)
    with pytest.raises(ConfigError, match="neither a file, a folder, a recipe nor a store"):
        data_sets([str(tmp_path / "gone")], SETTINGS)
    with pytest.raises(ConfigError, match="it holds no text"):
        data_sets([str(tmp_path)], SETTINGS)


def test_the_store_comes_from_the_recipe_or_from_a_model() -> None:
    assert parse("compare", ["recipes/tiny.yaml", "other"]).config == "recipes/tiny.yaml"
    assert store_of(parse("compare", ["folder", "s3://b/base/runs/one"])) == "s3://b/base"
    assert store_of(parse("compare", ["folder", "other"])) == "file:///"
    assert {"compare", "evaluate"} <= set(local.STAGES)
