"""A comparison by hand, and its page."""

import dataclasses
import json
import re
from collections import Counter
from typing import Any

import numpy as np
import pytest

from codeparrot.compare import LN2, CompareSettings, Contestant, Corpus, DataSet, comparison, module_rows, render
from tests.unit.test_report import HOSTILE, LOADING, Page

SETTINGS = CompareSettings(num_samples=2)
PROMPTS = ["import ", f"When they came back{HOSTILE}"]
DATA = [
    DataSet("code", "here", np.full(40, 100), np.arange(40)),
    DataSet(f"other {HOSTILE}", "there", np.full(40, 50), np.zeros(40, np.int64)),
]


def contestant(name: str, bits: list[float], module: str, **other: Any) -> Contestant:
    """`bits`: per byte, by data set; documents differ a little."""
    wobble = np.linspace(-10, 10, 40)
    values: dict[str, Any] = {
        "name": name,
        "source": f"s3://bucket/{HOSTILE}",
        "num_parameters": 1_000_000,
        "vocab_size": 512,
        "context": 64,
        "nll": [(each * data.num_bytes + wobble) * LN2 for each, data in zip(bits, DATA, strict=True)],
        "num_tokens": [1000, 500],
        "completions": [[f"{module}\n", f"{module}\nfrom {module} import x\n"], [HOSTILE, " home"]],
        "tokens_per_second": 120.0,
        "bytes_per_second": 400.0,
        "corpus": Corpus(Counter({module: 3, "os": 1}), 10),
        "pass_at_k": None,
    }
    return Contestant(**{**values, **other})


MODELS = [contestant("web", [2.0, 3.0], "fastapi"), contestant("science", [2.5, 3.0], "numpy")]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return comparison(MODELS, DATA, PROMPTS, SETTINGS)


def test_bits_per_byte_by_hand(found: dict[str, Any]) -> None:
    web, science = found["models"]
    assert [each["bits_per_byte"] for each in web["bits_per_byte"]] == pytest.approx([2.0, 3.0])
    assert science["bits_per_byte"][0]["bits_per_byte"] == pytest.approx(2.5)
    assert web["bits_per_byte"][0]["bytes_per_token"] == 4.0
    interval = web["bits_per_byte"][0]["interval"]
    assert interval["low"] < 2.0 < interval["high"]


def test_a_difference_is_real_where_it_has_a_sign(found: dict[str, Any]) -> None:
    first, second = found["differences"]
    assert first["difference"] == pytest.approx(-0.5)
    assert first["better"] == "web"
    assert first["interval"]["high"] < 0
    assert first["interval"]["confidence"] == pytest.approx(1 - 0.05 / 2)  # two of them hold together
    assert second["difference"] == pytest.approx(0)
    assert second["better"] is None


def test_the_words_and_imports_of_each_are_told(found: dict[str, Any]) -> None:
    web = found["models"][0]
    assert web["modules"]["fastapi"] == 3  # two go on from the prompt's own `import`
    assert web["corpus_modules"] == {"fastapi": 3, "os": 1}
    assert found["modules"][:2] == ["fastapi", "numpy"]
    row = module_rows(found)[0]
    assert row == {"name": "fastapi", "models": [1.0, 0.0], "corpora": [0.75, 0.0]}
    assert "numpy" not in {word["word"] for word in web["telling_words"]}


def test_three_models_make_three_pairs_on_each_text() -> None:
    three = comparison([*MODELS, contestant("third", [9.0, 9.0], "os", corpus=None)], DATA, PROMPTS, SETTINGS)
    assert len(three["differences"]) == 6
    assert {row["better"] for row in three["differences"] if "third" in (row["first"], row["second"])} == {
        "web",
        "science",
    }
    assert three["models"][2]["corpus_modules"] is None


def test_the_figures_are_json(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found


def test_the_page_shows_all_and_obeys_nothing(found: dict[str, Any]) -> None:
    html = render(found, "2026-03-01T12:34:56Z")
    page = Page(html)
    text = " ".join(page.text.split())
    assert "<script" not in html
    assert "<b>" not in html
    assert not {name for _, attrs in page.elements for name in attrs} & LOADING
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    for expected in ("web and science", "2.000", "-0.500", "not told apart", "0.0 %75.0 %", "1,000,000", "120.0"):
        assert expected in text
    assert [tag for tag, _ in page.elements].count("svg") == 1
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert render(found, "2026-03-01T12:34:56Z") == html


def test_pass_at_k_is_shown_if_it_was_measured() -> None:
    known = {"1": {"value": 0.0123}}
    models = [MODELS[0], dataclasses.replace(MODELS[1], pass_at_k=known)]
    text = " ".join(Page(render(comparison(models, DATA, PROMPTS, SETTINGS), "now")).text.split())
    assert "HumanEval pass@1n/a1.2 %" in text
