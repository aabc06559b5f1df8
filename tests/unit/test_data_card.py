"""The data card: its figures add up, it leaves nothing out, it is safe to open, and it is the same every time."""

import ast
import dataclasses
import inspect
import re
from itertools import pairwise
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from codeparrot import filters
from codeparrot.data_card import (
    MARKDOWN_CHARACTERS,
    STEPS,
    CardData,
    histogram,
    recipe,
    redaction,
    removals,
    render_html,
    render_markdown,
)
from codeparrot.filters import FilterSettings, LanguageThresholds, LicenseSettings
from codeparrot.near_dedup import NearDedupSettings
from codeparrot.pages import share
from codeparrot.plots import size, visible
from codeparrot.redact import RedactSettings
from codeparrot.splits import CurateSettings
from ray_jobs.curate import DUPLICATE, NEAR_DUPLICATE
from ray_jobs.curate_shard import CONTAMINATED
from tests.unit.test_report import LOADING, Page, amount

HOSTILE = (
    "</pre></details><script>alert(1)</script>`x`|y **b** [a](javascript:1) ```\n````\x00\x1b[31m\u202e {{ 7 * 7 }}"
)
ORIGIN = {"source": "packages", "repository": HOSTILE, "path": HOSTILE}


def sample(reason: str | None, number: int) -> dict[str, Any]:
    size = {"license": None if number else HOSTILE, "size_bytes": 1234}
    return {"reason": reason, **ORIGIN, **size, "excerpt": f"{number}: {HOSTILE}" * (20 if number else 1)}


def settings(**values: Any) -> Any:
    wanted = {"licenses": LicenseSettings(allow=("MIT",)), **values}
    return CurateSettings(**wanted).model_dump(mode="json")


def full_card() -> CardData:
    """A card on which every step removes as many documents as its number says."""
    rejected = {step.reason: amount(number, 100 * number) for number, step in enumerate(STEPS, 1)}
    rejected[HOSTILE] = amount(1, 10)
    num_rejected = sum(each["num_documents"] for each in rejected.values())
    rejected_bytes = sum(each["size_bytes"] for each in rejected.values())
    return CardData(
        run_name="mine",
        seeds={"collect": 3, "curate": 7},
        collect={
            "sources": [
                {"kind": "packages", "name": "packages", "distributions": [HOSTILE]},
                {"kind": "directory", "name": "idle", "path": "../code"},
            ]
        },
        curate=settings(
            redact=RedactSettings(),
            near_dedup=NearDedupSettings(),
            decontaminate={"files": ["HumanEval.jsonl.gz"]},
            filters=FilterSettings(by_language={"Cython": LanguageThresholds(max_line_length=200)}),
        ),
        raw={
            "num_entries": 500,
            "size_bytes_offered": 600_000,
            "num_documents": num_rejected + 40,
            "size_bytes": 500_000,
            "by_source": {"packages": amount(num_rejected + 40, 500_000)},
            "rejected": {"binary": amount(3, 3000), HOSTILE: amount(1, 1)},
        },
        curated={
            "num_documents_in": num_rejected + 40,
            "size_bytes_in": 500_000,
            "num_documents": 40,
            "size_bytes": 499_000 - rejected_bytes,
            "by_source": {"packages": amount(40, 4000)},
            "by_license": {"MIT": amount(30, 3000), "unknown": amount(9, 900), HOSTILE: amount(1, 100)},
            "by_language": {"Python": amount(40, 4000)},
            "by_repository": {HOSTILE: amount(1, 100), "torch": amount(39, 3900)},
            "by_size": {"200": amount(39, 3000), "2000": amount(1, 1000)},
            "rejected": rejected,
            "splits": {
                "train": amount(30, 3000) | {"num_repositories": 1},
                "validation": amount(10, 1000) | {"num_repositories": 1},
            },
            "validation_repositories": [HOSTILE],
            "redacted": {"num_documents": 5, "by_kind": {"email": {"num_documents": 5, "num_values": 17}}},
            "contaminated": {HOSTILE: {"num_documents": 16, "num_problems_found": 2, "num_problems": 164}},
            "exact_dedup": {"num_clusters": 1, "largest_cluster": 31, "clusters_by_size": {"32": 1}},
            "near_dedup": {"num_clusters": 3, "largest_cluster": 9, "clusters_by_size": {"2": 1, "16": 2}},
        },
        kept=[sample(None, number) for number in range(20)],
        rejected={reason: [sample(reason, number) for number in range(2)] for reason in rejected},
        clusters={
            "exact_duplicate": [
                {
                    "num_documents": 31,
                    "kept": {**ORIGIN, "store": None},
                    "removed": [{**ORIGIN, "similarity": 1.0}] * 20,
                }
            ],
            "near_duplicate": [
                {
                    "num_documents": 2,
                    "kept": {**ORIGIN, "store": HOSTILE},
                    "removed": [{**ORIGIN, "similarity": 0.875}],
                }
            ],
        },
        hashes={"this corpus": "ab" * 32, "benchmarks and earlier corpora": ""},
    )


def bare_card() -> CardData:
    """Of a recipe that asks for next to nothing, and a corpus from which nothing was removed."""
    data = full_card()
    one = {"MIT": amount(2, 300)}
    nothing = {"near_dedup", "exact_dedup", "redacted", "contaminated"}
    curated = {key: value for key, value in data.curated.items() if key not in nothing}
    curated |= {"num_documents_in": 2, "size_bytes_in": 300, "num_documents": 2, "size_bytes": 300, "rejected": {}}
    curated |= dict.fromkeys(("by_source", "by_license", "by_language", "by_repository"), one)
    curated |= {"by_size": {"200": amount(2, 300)}, "validation_repositories": []}
    off: dict[str, Any] = dict.fromkeys(FilterSettings.model_fields)
    off |= {"config_or_test_max_fraction": 0.05, "syntax": False, "generated": False, "vendored": False}
    curate = settings(
        licenses=LicenseSettings(allow=None, keep_unknown=True),
        filters=FilterSettings(**{**off, "by_language": {}}),
        exact_dedup=False,
        split_by="document",
    )
    raw = {**data.raw, "rejected": {}}
    return dataclasses.replace(data, raw=raw, curated=curated, curate=curate, kept=[], rejected={}, clusters={})


def text_of(page: str) -> str:
    return " ".join(Page(page).text.split())


@pytest.fixture(scope="module", params=["full", "bare"])
def data(request: pytest.FixtureRequest) -> CardData:
    return full_card() if request.param == "full" else bare_card()


@pytest.fixture(scope="module")
def html(data: CardData) -> str:
    return render_html(data)


@pytest.fixture(scope="module")
def markdown(data: CardData) -> str:
    return render_markdown(data)


def test_every_reason_of_the_code_is_a_step_in_the_order_in_which_it_acts() -> None:
    def reasons(function: Any) -> list[str]:
        found = [
            node.value.value
            for node in ast.walk(ast.parse(inspect.getsource(function)))
            if isinstance(node, ast.Yield | ast.Return) and isinstance(node.value, ast.Constant)
        ]
        return [reason for reason in found if isinstance(reason, str)]

    licenses = sorted(["license_unknown", *reasons(filters.reject_license)], reverse=True)
    expected = [*licenses, *reasons(filters._reasons), *reasons(filters._python_reasons)]
    ours = [step.reason for step in STEPS]
    assert ours[:-3] == sorted(expected, key=ours.index)
    assert set(ours) == {*expected, CONTAMINATED, DUPLICATE, NEAR_DUPLICATE}
    assert len(ours) == len(set(ours))


def test_every_step_names_a_key_of_a_recipe() -> None:
    for step in STEPS:
        values: Any = settings()
        for part in step.setting.split("."):
            assert part in values, step
            values = values[part]


def test_what_each_step_removed_adds_up_to_what_is_kept() -> None:
    data = full_card()
    rows = removals(data)
    assert [row["reason"] for row in rows] == [*(step.reason for step in STEPS), HOSTILE]
    before = data.curated["num_documents_in"]
    for row in rows:
        assert row["left"] == before - row["num_documents"]
        before = row["left"]
    assert before == data.curated["num_documents"]
    removed = sum(row["size_bytes"] for row in rows)
    assert data.curated["size_bytes_in"] + redaction(data) - removed == data.curated["size_bytes"]
    assert redaction(data) == -1000


def test_the_figures_of_the_manifest_are_on_both_cards() -> None:
    data = full_card()
    page, card = text_of(render_html(data)), render_markdown(data)
    for number, step in enumerate(STEPS, 1):
        row = next(row for row in removals(data) if row["reason"] == step.reason)
        assert re.search(rf"\| `{step.reason}` \| .* \| {number} \| .* \| {row['left']} \|\n", card), step.reason
        assert f"{row['why']}{number}{size(100 * number)}{share(row['share'])}{row['left']}" in page
        assert f"`{step.reason}` (2 of {number})" in card
    for figure in ("31 documents", "0.875", "and 10 more", "mine", "ab" * 32, "seed: 7"):
        assert figure in page
        assert figure in card
    assert "a line has more characters than 1000 (Cython: 200)" in page
    assert "7; of the stage collect: 3" in page
    assert "| `unknown` | 9 | 900 B | 22.5 % |" in card
    assert "| `email` | 5 | 17 |" in card
    assert "| `idle` | directory | 0 | 0 B | 0 | 0 B |" in card
    assert "-1.00 kB" in card


def test_steps_that_were_not_used_say_what_is_still_there() -> None:
    unused = {row["reason"] for row in removals(bare_card()) if not row["on"]}
    assert unused == {step.reason for step in STEPS}
    page, card = text_of(render_html(bare_card())), render_markdown(bare_card())
    for text in (page, card.replace("**", "")):
        assert "Nothing was redacted." in text
        assert "No benchmark was looked for." in text
        assert text.count("The recipe does not ask for this step.") == 2
        assert "single documents" in text
    assert "All of them did." in page
    assert "### Kept" not in card


def test_a_filter_of_one_language_alone_is_on() -> None:
    own = FilterSettings(max_line_length=None, by_language={"Cython": LanguageThresholds(max_line_length=200)})
    data = dataclasses.replace(bare_card(), curate=settings(filters=own))
    row = next(row for row in removals(data) if row["reason"] == "long_line")
    assert row["on"]
    assert row["why"] == "a line has more characters than a threshold (Cython: 200)"


def test_the_page_loads_nothing_and_obeys_nothing(html: str) -> None:
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "embed", "base", "b"}
    assert not {name for _, attributes in page.elements for name in attributes} & LOADING
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert all(link.startswith("#") for link in page.values("href"))
    assert "default-src 'none'" in "".join(page.values("content"))
    assert not [character for character in html if not character.isprintable() and character != "\n"]


def test_the_page_can_be_read_by_everybody(html: str) -> None:
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert all(tags.count(tag) == 1 for tag in ("h1", "header", "main", "footer", "nav", "title"))
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    levels = [int(tag[1]) for tag in tags if re.fullmatch("h[1-6]", tag)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert {link[1:] for link in page.values("href")} <= set(page.values("id"))
    assert tags.count("details") == tags.count("summary")


def test_hostile_text_is_shown_on_the_page() -> None:
    text = Page(render_html(full_card())).text
    assert visible(HOSTILE) in text
    assert text.count("</pre></details><script>alert(1)</script>") > 40


def test_the_markdown_holds_no_html_no_link_and_every_excerpt_as_it_is(markdown: str, data: CardData) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    found = [each for token in tokens for each in (token, *(token.children or []))]
    assert not {each.type for each in found} & {"html_block", "html_inline", "link_open", "image"}
    fences = [each.content for each in found if each.type == "fence"]
    samples = [*data.kept, *(each for group in data.rejected.values() for each in group)]
    excerpts = {visible(each["excerpt"][:MARKDOWN_CHARACTERS]) + "\n" for each in samples}
    assert excerpts <= set(fences)
    assert len(fences) == 2 + len(samples)
    bold = {found[place + 1].content for place, each in enumerate(found) if each.type == "strong_open"}
    assert "b" not in bold
    assert [each.tag for each in found if each.type == "heading_open"].count("h1") == 1
    assert markdown.startswith("# Data card: mine\n")
    assert not [character for character in markdown if not character.isprintable() and character != "\n"]


def test_every_row_of_a_table_has_the_cells_of_its_head(markdown: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    width, cells = 0, 0
    assert any(token.type == "tr_open" for token in tokens)
    for token in tokens:
        if token.type == "table_open":
            width = 0
        elif token.type == "tr_open":
            cells = 0
        elif token.type in ("th_open", "td_open"):
            cells += 1
        elif token.type == "tr_close":
            width = width or cells
            assert cells == width


def test_the_recipe_on_the_card_is_the_recipe() -> None:
    data = full_card()
    values = yaml.safe_load(recipe(data))
    assert values == {"seed": 7, "collect": data.collect, "curate": data.curate}
    assert CurateSettings.model_validate(values["curate"]).model_dump(mode="json") == data.curate
    assert recipe(data).isascii()


def test_the_same_data_gives_the_same_bytes_in_whatever_order_it_comes() -> None:
    data = full_card()
    curated = {
        key: dict(reversed(value.items())) if key.startswith("by_") or key == "rejected" else value
        for key, value in data.curated.items()
    }
    other = dataclasses.replace(data, curated=curated, rejected=dict(reversed(list(data.rejected.items()))))
    assert render_html(other) == render_html(data)
    assert render_markdown(other) == render_markdown(data)


def test_sizes_are_counted_without_gaps() -> None:
    rows = histogram({"2000": amount(1, 1500), "200": amount(3, 500)})
    assert [(row["bound"], row["num_documents"]) for row in rows] == [(200, 3), (500, 0), (1000, 0), (2000, 1)]
    assert histogram({}) == []
