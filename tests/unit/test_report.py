"""The report: self-contained, safe to open whatever the corpus holds, and the same every time."""

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from codeparrot.plots import Bar, bar_plot, compact, count, duration, size, visible
from codeparrot.report import ReportData, ledger, render, token

HOSTILE = "</script><script>alert(1)</script><b>bold</b>\x00\x1b[31m\x07\u202egnp.exe\u200f\ud800 $x^$ {{ 7 * 7 }}"
LOADING = {"src", "srcset", "data", "poster", "action", "background", "formaction"}
VOID = {"meta"}


def amount(num_documents: int, size_bytes: int) -> dict[str, int]:
    return {"num_documents": num_documents, "size_bytes": size_bytes}


def split(tokens_in: int, remainder: int, num_documents: int) -> dict[str, int]:
    rows = (tokens_in - remainder) // 256
    return {
        "tokens_in": tokens_in,
        "tokens_in_rows": rows * 256,
        "tokens_remainder": remainder,
        "num_rows": rows,
        "num_documents": num_documents,
        "size_bytes": 4 * tokens_in,
    }


def full_report() -> ReportData:
    steps = [
        {"kind": "step", "step": step, "time": 1e9, "loss": 9 - step / 10, "grad_norm": 1.0, "learning_rate": 5e-4}
        | {"tokens_seen": step * 8192, "tokens_per_second": 8000.0 + step}
        for step in range(10, 51, 10)
    ]
    return ReportData(
        run_name=f"tiny {HOSTILE}",
        created="2026-03-01T12:34:56Z",
        stages=[
            {"name": "collect", "seconds": 48.2, "status": "done", "in": "3 packages", "out": HOSTILE},
            {"name": "train", "seconds": 1325.0, "status": "skipped", "in": "96 rows", "out": "step 50"},
        ],
        raw={
            "num_documents": 900,
            "size_bytes": 9_000_000,
            "num_entries": 1234,
            "size_bytes_offered": 12_300_000,
            "rejected": {"empty": amount(300, 0), HOSTILE: amount(34, 3_300_000)},
            "by_license": {"MIT": amount(600, 6_000_000), HOSTILE: amount(300, 3_000_000)},
            "by_repository": {HOSTILE: amount(900, 9_000_000)},
        },
        curated={
            "num_documents_in": 900,
            "size_bytes_in": 9_000_000,
            "num_documents": 811,
            "size_bytes": 7_890_000,
            "rejected": {"exact_duplicate": amount(88, 1_100_000), HOSTILE: amount(1, 10_000)},
            "by_license": {f"License-{index}": amount(index, 10 * index) for index in range(30)},
            "by_repository": {HOSTILE: amount(811, 7_890_000)},
            "splits": {
                "train": amount(790, 7_000_000) | {"num_repositories": 41},
                "validation": amount(21, 890_000) | {"num_repositories": 2},
            },
            "validation_repositories": [HOSTILE],
            "rejected_samples": [
                {"reason": "exact_duplicate", "repository": HOSTILE, "path": HOSTILE, "excerpt": HOSTILE},
                {"reason": HOSTILE, "repository": "empty", "path": "empty.py", "excerpt": ""},
            ],
        },
        tokenizer={
            "vocab_size": 4096,
            "num_indentation_tokens": 17,
            "longest_indentation": 31,
            "num_keywords": 35,
            "num_keywords_covered": 34,
            "keywords_missing": ["nonlocal"],
            "longest_tokens": [" " * 8, HOSTILE],
            "last_tokens": ["\tself", "\u202e"],
            "characters_per_token": 3.97,
            "gpt2_characters_per_token": 2.61,
            "token_length_histogram": {"1": 256, "2": 900, "70": 2},
        },
        packed={
            "max_seq_len": 256,
            "rows_per_shard": 125_000,
            "vocab_size": 4096,
            "dtype": "uint16",
            "eos_token_id": 0,
            "splits": {"train": split(1_790_007, 55, 790), "validation": split(45_000, 200, 21)},
            "document_tokens_histogram": {"16": 3, "64": 20, "65536": 1},
        },
        run={
            "num_parameters": 7_412_736,
            "world_size": 4,
            "tokens_seen": 409_600,
            "loss": 4.125,
            "validation_loss": 4.375,
            "precision": "fp32",
            "device": "cpu",
            "checkpoint_uri": f"s3://bucket/{HOSTILE}",
            "num_restarts": 1,
        },
        evaluation={
            "loss": 4.321,
            "perplexity": 75.3,
            "bits_per_byte": 1.615,
            "gzip_bits_per_byte": 2.021,
            "xz_bits_per_byte": 1.842,
            "num_tokens": 44_625,
            "num_bytes": 178_500,
            "num_rows": 175,
            "intervals": {
                "unit": "repository",
                "loss": {"low": 4.1, "high": 4.5, "confidence": 0.95, "num_units": 2},
                "bits_per_byte": {"low": 1.512, "high": 1.714, "confidence": 0.95, "num_units": 2},
            },
            "tasks": {
                "line": {"num_tasks": 9, "exact_match": 1 / 9, "edit_similarity": 0.345},
                "body": {
                    "num_tasks": 8,
                    "exact_match": 0.0,
                    "edit_similarity": 0.21,
                    "parses": 0.375,
                    "parsed_fraction": 0.625,
                },
                "ngram": 8,
                "copied": {
                    "model": {"num_tokens": 900, "fraction": 0.25, "longest": 31, "longest_mean": 4.0},
                    "author": {"num_tokens": 1000, "fraction": 0.11, "longest": 17, "longest_mean": 3.0},
                },
            },
        },
        humaneval={"num_problems": 164, "pass_at_k": {"1": {"value": 0.0123, "low": 0.004, "high": 0.021}}},
        completions=[{"prompt": f"def f():{HOSTILE}\n", "completion": f"    return 1{HOSTILE}\n"}],
        history=[*steps, {"kind": "evaluation", "step": 50, "time": 1e9, "validation_loss": 4.375}],
        recipe=f"run_name: tiny # {HOSTILE}\n",
        breakdown={
            "by_repository": [cost_row(HOSTILE, 120_000), cost_row("other", 58_500)],
            "by_license": [cost_row(f"License-{index}", 5000) for index in range(30)],
            "by_document_length": [{"at_most": 2**power, **cost_row("", 50_000)} for power in (9, 10, 11)],
            "by_position": [{"at_most": 2**power, **cost_row("", 50_000)} for power in range(8)],
        },
        answers=[answer("line", 1.0, 0), answer("body", 0.2, 31), answer("body", 0.4, 0)],
    )


def cost_row(name: str, num_bytes: int) -> dict[str, Any]:
    return {"name": name, "loss": 4.0, "bits_per_byte": 1.5, "num_tokens": num_bytes // 4, "num_bytes": num_bytes}


def answer(kind: str, similarity: float, longest_copy: int) -> dict[str, Any]:
    origin = {"repository": HOSTILE, "path": HOSTILE, "license": None, "row": 3, "offset": 5}
    return {
        "kind": kind,
        "repository": HOSTILE,
        "path": HOSTILE,
        "line": 12,
        "prompt": f"{HOSTILE}\n",
        "expected": HOSTILE,
        "text": HOSTILE,
        "exact": similarity == 1,
        "similarity": similarity,
        "num_tokens": 40,
        "longest_copy": longest_copy,
        "copied_from": origin if longest_copy else None,
    }


def empty_report() -> ReportData:
    return ReportData("empty", "2026-03-01T12:34:56Z", [], {}, {}, {}, {}, {}, {}, [], [], "")


class Page(HTMLParser):
    """What a browser would make of the page: elements, ids, text; fails on a tag closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for _, attrs in self.elements if attribute in attrs]


@pytest.fixture(scope="module")
def html() -> str:
    return render(full_report())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_page_loads_nothing(html: str, page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "image", "foreignobject"}
    assert not {name for _, attrs in page.elements for name in attrs} & LOADING
    assert all(link.startswith("#") for link in page.values("href") + page.values("xlink:href"))
    assert not re.search(r"https?:|@import|url\((?!#)", html)
    assert "default-src 'none'" in "".join(page.values("content"))


def test_ids_are_unique_and_every_reference_has_its_target(html: str, page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r'(?:href="|url\()#([^")]+)', html)
    assert references
    assert set(references) <= set(ids)


def test_hostile_text_is_shown_and_not_obeyed(html: str, page: Page) -> None:
    assert "<script" not in html
    assert "<b>" not in html
    assert "</script><script>alert(1)</script><b>bold</b>\\x00\\x1b[31m\\x07\\u202egnp.exe\\u200f\\ud800" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not [character for character in html if not character.isprintable() and character != "\n"]
    assert html.encode()
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)


def test_the_figures_are_on_the_page(page: Page) -> None:
    text = " ".join(page.text.split())
    for figure in (
        "7.41 M parameters",
        "7.00 MB of code from 41 repositories",
        "1.61 bits per byte",
        "4.321 nats per token",
        "1,234 entries offered (12.3 MB), 900 became documents (9.00 MB); curation kept 811 (7.89 MB)",
        "3.97 characters per token",
        "34 of 35",
        "50 steps on 4 ranks (cpu, fp32), 409,600 tokens seen, 1 restart.",
        "22 min 53 s",
        "1 of 88 documents",
        "1.51 to 1.71 bits per byte (95 %, 2 repositories drawn anew: so few that the interval says little)",
        "pass@1 of 164 problems1.2 % (0.4 to 2.1 %)",
        "next line911.1 %0.345",
        "body of a function80.0 %0.21037.5 %",
        "the model90025.0 %31 the authors1,00011.0 %17",
        "And 18 more, in breakdown.json",
        "31 of 40 tokens, as in",
    ):
        assert figure in text
    for expected in ("1,790,007", "1,789,952", "45,000", "44,800", "7,412,736", "44,625", "178 kB", "8,030"):
        assert expected in text
    assert "n/a" not in text


def test_every_plot_is_an_image_with_words_and_a_caption(page: Page) -> None:
    tags = [tag for tag, _ in page.elements]
    assert tags.count("figure") == tags.count("figcaption") == tags.count("svg") == 11
    labels = {attrs["aria-label"] or "" for tag, attrs in page.elements if tag == "svg" and attrs["role"] == "img"}
    assert len(labels) == 11
    assert any("this model: 1.61 bits per byte; xz -9: 1.84" in label for label in labels)
    assert any("validation: 4.38 at step 50" in label for label in labels)
    assert any("Measures by position. 1: 4.00 nats per token, 1.50 bits per byte; 2: 4.00" in label for label in labels)
    assert any("257-512: 4.00 nats per token" in label for label in labels)
    assert any("20+ characters: 2" in label for label in labels)
    assert any("MIT: 600 documents, 6.00 MB;" in label for label in labels)
    assert any("exact_duplicate: 88 documents" in label and "empty: 300 documents" in label for label in labels)


def test_plots_take_their_colours_from_the_page(html: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--first)" in drawings
    assert not re.search(r"(fill|stroke): #", drawings)
    assert "<style" not in drawings
    used = set(re.findall(r"var\((--[a-z]+)\)", html))
    for scheme in re.findall(r":root \{(.*?)\}", html, re.DOTALL):
        assert used - {"--mono", "--part"} <= set(re.findall(r"(--[a-z]+):", scheme))


def test_the_same_data_gives_the_same_page(html: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    monkeypatch.setitem(mpl.rcParams, "font.size", 30)  # as a user's matplotlibrc may
    assert render(full_report()) == html
    assert mpl.rcParams["font.size"] == 30


def test_a_ledger_that_does_not_balance_is_marked() -> None:
    data = full_report()
    packed: dict[str, Any] = {**data.packed, "splits": {"train": {**split(1000, 232, 3), "tokens_remainder": 231}}}
    assert [row["balances"] for row in ledger(packed)] == [False]
    text = Page(render(dataclasses.replace(data, packed=packed))).text
    assert "does not balance" in text
    assert "\u2713 balances" not in text


@pytest.mark.parametrize(
    ("padding", "shown"), [({}, False), ({"tokens_padding": 0}, False), ({"tokens_padding": 7}, True)]
)
def test_padding_is_shown_if_there_is_any(padding: dict[str, int], shown: bool) -> None:
    data = full_report()
    packed: dict[str, Any] = {**data.packed, "splits": {"train": {**split(1000, 232, 3), **padding}}}
    text = Page(render(dataclasses.replace(data, packed=packed))).text
    assert ("padding that fills rows" in text) == shown
    assert "\u2713 balances" in text


def test_both_splits_of_a_good_ledger_are_marked(page: Page) -> None:
    assert page.text.count("\u2713 balances") == 2


def test_an_empty_report_renders_and_invents_no_number() -> None:
    page = Page(render(empty_report()))
    assert "n/a" in page.text
    assert page.text.count("Nothing to show.") == 9
    assert "What it is asked to write" not in page.text
    assert "No document was rejected." in page.text
    assert "No completions were made." in page.text


@pytest.mark.parametrize("kind", ["step", "evaluation"])
def test_a_history_of_one_event_is_drawn_as_a_point(kind: str) -> None:
    data = full_report()
    event = next(event for event in data.history if event["kind"] == kind)
    page = Page(render(dataclasses.replace(data, history=[event])))
    (label,) = [label for label in page.values("aria-label") if label.startswith("Loss")]
    assert f"at step {event['step']}" in label


def test_zero_documents_of_zero_bytes_are_drawn() -> None:
    svg = bar_plot("zero", "Zero", [Bar("none", "#040404", (0.0, 0.0))], [("documents", count), ("bytes", size)])
    assert "none: 0 documents, 0 B" in svg


def test_numbers_carry_units_and_three_figures() -> None:
    assert [size(value) for value in (0, 999, 1000, 999_999, 12_345, 75_000_123, 3.2e18)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "1.00 MB",
        "12.3 kB",
        "75.0 MB",
        "3200 PB",
    ]
    assert [compact(value) for value in (0, 12, 8000, 999_999, 7_412_736)] == ["0", "12", "8 k", "1 M", "7.41 M"]
    assert [duration(value) for value in (0, 4.21, 119.9, 119.96, 185, 7199.9, 7620)] == [
        "0.0 s",
        "4.2 s",
        "119.9 s",
        "2 min 00 s",
        "3 min 05 s",
        "2 h 00 min",
        "2 h 07 min",
    ]
    assert count(1_234_567) == "1,234,567"


def test_invisible_characters_are_made_visible() -> None:
    assert visible("a\tb\nc \u00a0\r\u2066\x7f\u00e9") == "a\tb\nc \\xa0\\r\\u2066\\x7f\u00e9"
    assert token("  x\n") == "'\u2423\u2423x\\n'"


def test_pass_at_k_is_shown_with_its_interval_where_there_is_one() -> None:
    estimates = {"1": {"value": 0.0375, "low": 0.0121, "high": 0.0688}}
    shown = render(dataclasses.replace(full_report(), humaneval={"num_problems": 164, "pass_at_k": estimates}))
    assert "pass@1 of 164 problems" in Page(shown).text
    assert "3.8 % (1.2 to 6.9 %)" in Page(shown).text
    for without in (None, {"num_problems": 164, "pass_at_k": None}):
        assert "pass@" not in render(dataclasses.replace(full_report(), humaneval=without))
