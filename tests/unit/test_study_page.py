"""What the runs of a study say together."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from codeparrot.scaling import Law
from codeparrot.study_page import Question, Result, findings, render

PLANTED = Law(0.9, 120.0, 0.34, 300.0, 0.37)
SIZES = {"xs": 1e6, "s": 2e6, "m": 4e6, "l": 8e6}
TOKENS = {"10m": 1e7, "30m": 3e7, "90m": 9e7}
QUESTION = Question(budgets=(1e15, 1e22), tolerance=0.02)


def result(size: str, tokens: str, bits: float, **others: Any) -> Result:
    values: dict[str, Any] = {
        "run_name": f"scaling-{size}-{tokens}",
        "labels": {"size": size, "tokens": tokens},
        "values": {},
        "held_out": size == "l",
        "num_parameters": int(SIZES[size]),
        "tokens": int(TOKENS[tokens]),
        "bits_per_byte": bits,
        "interval": {"low": bits - 0.05, "high": bits + 0.05},
        "loss": 2 * bits,
        "unique_tokens": 50_000_000,
        "seconds": 60.0,
        "repositories": {"one": (bits * 100, 100), "two": (bits * 300, 300), "three": (bits * 50, 50)},
    }
    return Result(**{**values, **others})


def grid() -> list[Result]:
    return [result(size, tokens, PLANTED.loss(SIZES[size], TOKENS[tokens])) for size in SIZES for tokens in TOKENS]


def test_held_out_runs_are_predicted_without_knowing_them() -> None:
    spoiled = [replace(each, bits_per_byte=9.9) if each.held_out else each for each in grid()]
    fine, wrong = (findings("scaling", each, QUESTION, 1)["scaling"]["predictions"] for each in (grid(), spoiled))
    assert [each["run_name"] for each in fine] == ["scaling-l-10m", "scaling-l-30m", "scaling-l-90m"]
    assert all(each["holds"] and abs(each["error"]) < 1e-3 for each in fine)
    assert not any(each["holds"] for each in wrong)
    assert [each["predicted"]["value"] for each in wrong] == [each["predicted"]["value"] for each in fine]


def test_extrapolation_ends_where_it_was_seen_to_hold_and_at_the_largest_run_if_it_did_not() -> None:
    law = findings("scaling", grid(), QUESTION, 1)["scaling"]
    assert law["largest_flops"] == 6 * 8e6 * 9e7
    assert law["end"]["flops"] == pytest.approx(2 * law["largest_flops"])  # the held-out size is twice the largest
    assert [row["beyond"] for row in law["optimum"] if row["flops"] in QUESTION.budgets] == [False, True]
    off = [replace(each, bits_per_byte=each.bits_per_byte * 1.05) if each.held_out else each for each in grid()]
    assert findings("scaling", off, QUESTION, 1)["scaling"]["end"]["flops"] == law["largest_flops"]


def test_a_study_whose_runs_determine_no_law_says_why() -> None:
    found = findings("scaling", grid()[:4], QUESTION, 1)
    assert found["scaling"] == {"refused": "a law needs 3 different sizes or more, got 2"}
    assert '<span class="mark">None:</span> a law needs 3 different sizes' in page(found)


def test_a_run_is_behind_the_best_if_it_is_in_every_repository() -> None:
    best, worse = result("m", "90m", 1.0), result("s", "90m", 1.2)
    mixed = result("xs", "90m", 1.05, repositories={"one": (10.0, 100), "two": (420.0, 300), "three": (50.0, 50)})
    other_text = result("l", "90m", 1.1, repositories={"one": (110.0, 100)})
    found = findings("rates", [worse, best, mixed, other_text], None, 1)
    assert found["best"] == best.run_name
    behind = {run["labels"]["size"]: run["behind"] for run in found["runs"]}
    assert behind["s"]["low"] == pytest.approx(0.2)
    assert behind["xs"]["low"] < 0 < behind["xs"]["high"]
    assert behind["m"] is None
    assert behind["l"] is None


def page(found: dict[str, Any]) -> str:
    return render(found, ["size", "tokens"], "study_name: <b>mine</b>", "2026-01-02T03:04:05Z")


class Tags(HTMLParser):
    """The tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br", "path", "use"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "use"):
            assert self.open.pop() == tag


def test_the_page_is_whole_and_loads_nothing() -> None:
    text = page(findings("scaling", grid(), QUESTION, 1))
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert not re.search(r"<script|https?://(?!www\.w3\.org)", text)
    assert "&lt;b&gt;mine" in text
    assert text.count("<svg") == 2
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert "beyond the end" in text
    assert "within" in text


def test_an_axis_of_numbers_is_drawn() -> None:
    rates = [
        result("m", "30m", bits, run_name=f"rates-{rate:g}", values={"rate": rate}, labels={"rate": f"{rate:g}"})
        for rate, bits in ((1e-3, 1.3), (2e-3, 1.2), (4e-3, 1.25))
    ]
    text = render(findings("rates", rates, None, 1), ["rate"], "", "2026-01-02T03:04:05Z")
    assert text.count("<svg") == 1
    assert "By rate" in text
    assert "The law" not in text
