"""The version of the code: it follows every module that can alter an output, and no other."""

from importlib import import_module
from pathlib import Path

import pytest

from codeparrot.code_version import closure, code_version
from ray_jobs.stage import MADE_BY


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of three modules that import one another, and one that stands alone."""
    folder = tmp_path / tmp_path.name.replace("-", "_")
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "first.py").write_text(f"def f():\n    from {folder.name} import second\n    return second\n")
    (folder / "second.py").write_text(f"import json\nfrom {folder.name}.third import Thing\n")
    (folder / "third.py").write_text("class Thing: ...\n")
    (folder / "alone.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_it_follows_imports_however_deep_and_whether_in_a_function(project: Path) -> None:
    name = project.name
    expected = {name, *(f"{name}.{module}" for module in ("first", "second", "third"))}
    assert closure(f"{name}.first") == expected
    assert closure(f"{name}.first", leave_out={f"{name}.second"}) == {name, f"{name}.first"}


@pytest.mark.parametrize("changed", ["first.py", "second.py", "third.py"])
def test_a_change_in_any_of_them_is_another_version(project: Path, changed: str) -> None:
    before = code_version(f"{project.name}.first")
    (project / changed).write_text((project / changed).read_text() + "# more\n")
    assert code_version(f"{project.name}.first") != before


def test_a_change_elsewhere_is_not(project: Path) -> None:
    before = code_version(f"{project.name}.first")
    (project / "alone.py").write_text("x = 2\n")
    assert code_version(f"{project.name}.first") == before


def test_the_template_of_a_module_belongs_to_it(project: Path) -> None:
    before = code_version(f"{project.name}.alone")
    (project / "alone.html.j2").write_text("<p>")
    import codeparrot.code_version

    codeparrot.code_version._files.cache_clear()
    assert code_version(f"{project.name}.alone") != before


def test_a_module_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        code_version("nowhere")


@pytest.mark.parametrize(
    ("stage", "modules"),
    [
        ("collect", {"ray_jobs.collect", "ray_jobs.tally", "codeparrot.sources.packages", "codeparrot.licenses"}),
        ("curate", {"codeparrot.filters", "codeparrot.dedup", "codeparrot.tokenizer", "codeparrot.draws"}),
        ("train_tokenizer", {"codeparrot.tokenizer", "codeparrot.documents"}),
        ("pack", {"codeparrot.packing", "codeparrot.tokenizer"}),
        ("train", {"codeparrot.train", "codeparrot.loss", "codeparrot.dataloader", "codeparrot.model"}),
        ("evaluate", {"codeparrot.evaluate", "codeparrot.metrics", "codeparrot.dataloader", "codeparrot.tokenizer"}),
        ("generate", {"codeparrot.generate", "codeparrot.sampling", "codeparrot.exported", "codeparrot.tokenizer"}),
        ("report", {"codeparrot.report", "codeparrot.plots", "ray_jobs.collect"}),
    ],
)
def test_each_stage_depends_on_what_shapes_its_output(stage: str, modules: set[str]) -> None:
    assert modules <= closure(f"ray_jobs.{stage}")


def test_sampling_does_not_retrain() -> None:
    assert "codeparrot.generate" not in closure("ray_jobs.train")


def test_every_stage_has_a_version() -> None:
    versions = {import_module(f"ray_jobs.{name}").STAGE.code for name in MADE_BY.values()}
    assert len(versions) == len(MADE_BY)
