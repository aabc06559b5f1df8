"""Exports in a folder; those in an object store are in the integration tests."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot.errors import ConfigError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings
from codeparrot.sources.bigquery import EXPORTED
from tests.unit.row_doubles import contents, entries_of, failure, put, row

DOCUMENT = (Path(__file__).parents[2] / "docs/bigquery.md").read_text()


def block(language: str) -> str:
    """What stands in the first block of this language in the document."""
    found = re.search(rf"^```{language}\n(.*?)^```", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def test_the_query_of_the_document_exports_the_columns_that_are_read() -> None:
    exported = re.findall(r"^  \w+\.\w+ AS (\w+)", block("sql"), re.MULTILINE)
    assert set(exported) == {*EXPORTED.required().values(), *EXPORTED.described().values(), EXPORTED.size, "copies"}
    assert set(re.findall(r"^\| `(\w+)` \|", DOCUMENT, re.MULTILINE)) == set(exported)


def test_the_recipe_of_the_document_is_one() -> None:
    (source,) = validate(CollectSettings, yaml.safe_load(block("yaml"))["collect"], "document").sources
    assert source.kind == "bigquery"


def test_an_export_may_lie_in_folders_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "exports/000000000000.parquet", [row("a.py")])
    put(tmp_path / "exports/more/000000000001.json.gz", [row("b.py")])
    put(tmp_path / "exports/more/other.jsonl", [row("c.py")])
    (tmp_path / "exports/README.txt").write_text("not a part of it")
    default = CollectSettings(sources=({"kind": "bigquery", "uri": "x"},)).sources[0]
    assert default.kind == "bigquery"
    files = list(default.files)
    assert set(contents(tmp_path / "exports", files=files)) == {"a.py", "b.py", "c.py"}
    monkeypatch.chdir(tmp_path)
    assert set(contents("exports", files=["more/*"])) == {"b.py", "c.py"}
    assert entries_of((tmp_path / "exports").as_uri(), files=files)


def test_an_export_without_files_says_where_it_looked(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        assert failure(folder, files=["*.parquet"]).endswith(f"export {folder} holds no file that matches *.parquet")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"uri": "gs://bucket/x"}, "write s3://BUCKET/PREFIX or a directory"),
        ({"uri": "s3:///x"}, "names no bucket"),
        ({"uri": ""}, "write s3://BUCKET/PREFIX or a directory"),
        ({}, "uri: required key is missing"),
        ({"uri": "x", "files": []}, "files"),
        ({"uri": "x", "columns": {"repository": "", "path": "b", "content": "c"}}, "columns.repository"),
        ({"uri": "x", "columns": {"repository": "a", "path": "b", "content": "c", "copies": "d"}}, "unknown key"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(CollectSettings, {"sources": [{"kind": "bigquery", **settings}]}, "run.yaml")
    assert message in str(caught.value)
    assert "storage.uri" not in str(caught.value)
