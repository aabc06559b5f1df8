"""The page a person looks at: one HTML file that says what went in, what came out and how good it is.

It is read far from where it was made (a mail, a bucket, a browser without a network), so everything is inside it:
no script, no font, no picture from elsewhere, and a policy in its head that forbids them. What it shows was written
by strangers: everything is escaped, and control characters and bidirectional marks are shown, not obeyed.
The same data gives the same bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from codeparrot.pages import html_page
from codeparrot.plots import (
    FIRST,
    QUIET,
    SECOND,
    Bar,
    Curve,
    bar_plot,
    compact,
    count,
    curve_plot,
    document_length_plot,
    duration,
    share_plot,
    token_length_plot,
)

NUM_REPOSITORIES = 15
NUM_GROUPS = 12
"""Repositories and licences whose measures are shown, those with most text."""
NUM_ANSWERS = 3
"""Of each kind and outcome."""
NUM_COPIES = 5
MIN_TOKENS = 50
"""Of a class, for its bar to mean anything."""
NUM_SAMPLES = 5
"""Rejected documents to read, of each reason; the data card has more."""


@dataclass(frozen=True)
class ReportData:
    """What the page is made of: the counts of the manifests, and the history of the run."""

    run_name: str
    created: str
    """UTC, ISO 8601."""
    stages: list[dict[str, Any]]
    """{"name", "seconds", "status", "in", "out"}, in order."""
    raw: Mapping[str, Any]
    curated: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    packed: Mapping[str, Any]
    run: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    completions: list[dict[str, str]]
    """{"prompt", "completion"}, and "suffix" where something follows."""
    history: list[dict[str, Any]]
    """Events of the run: {"kind": "step" | "evaluation", "step", ...}."""
    recipe: str
    """YAML."""
    humaneval: Mapping[str, Any] | None = None
    """None: it was left out."""
    breakdown: Mapping[str, Any] = field(default_factory=dict)
    """Of the evaluation (`codeparrot.breakdown`)."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """To the tasks of the validation split."""


def render(data: ReportData) -> str:
    """The report as one self-contained HTML page."""
    from markupsafe import Markup

    return html_page(
        "report.html.j2",
        data=data,
        token=token,
        total_seconds=sum(stage["seconds"] for stage in data.stages),
        plots={name: Markup(svg) for name, svg in plots(data).items()},  # noqa: S704 - drawn and escaped by us
        ledger=ledger(data.packed),
        samples=samples(data.curated),
        repositories=repositories(data),
        speed=median_speed(data.history),
        num_steps=max((event["step"] for event in data.history if event["kind"] == "step"), default=None),
        broken_down=broken_down(data.breakdown),
        answers=shown_answers(data.answers),
        copies=copies(data.answers),
    )


def plots(data: ReportData) -> dict[str, str]:
    """SVG by name, empty where there is nothing to draw."""
    raw, curated = data.raw, data.curated
    steps = [event for event in data.history if event["kind"] == "step"]
    evaluations = [event for event in data.history if event["kind"] == "evaluation"]
    losses = [
        Curve("training", FIRST, _points(steps, "loss")),
        Curve("validation", SECOND, _points(evaluations, "validation_loss"), marker="o"),
    ]
    rates = [Curve("learning rate", FIRST, _points(steps, "learning_rate"))]
    speeds = [Curve("tokens per second", FIRST, _points(steps, "tokens_per_second"))]
    licenses = [("collected", QUIET, raw.get("by_license", {})), ("curated", FIRST, curated.get("by_license", {}))]
    rejected = [
        ("while collecting", QUIET, raw.get("rejected", {})),
        ("while curating", SECOND, curated.get("rejected", {})),
    ]
    return {
        "loss": curve_plot("loss", "Loss", losses, "nats per token", _general, zero=False),
        "learning_rate": curve_plot("learning-rate", "Learning rate", rates, "learning rate", _general, zero=True),
        "speed": curve_plot("speed", "Training speed", speeds, "tokens per second", compact, zero=True),
        "compression": compression_plot(data.evaluation),
        "positions": cost_plot("positions", "Measures by position", data.breakdown.get("by_position", [])),
        "lengths": cost_plot("lengths", "Measures by length of document", data.breakdown.get("by_document_length", [])),
        "licenses": share_plot("licenses", "Documents and bytes by licence", licenses),
        "rejected": share_plot("rejected", "Rejected documents and bytes by reason", rejected),
        "token_lengths": token_length_plot(
            "token-lengths", "Lengths of the vocabulary's tokens", data.tokenizer.get("token_length_histogram", {})
        ),
        "document_lengths": document_length_plot(
            "document-lengths",
            "Lengths of documents",
            data.packed.get("document_tokens_histogram", {}),
            data.packed.get("max_seq_len", 0),
        ),
        "stages": bar_plot(
            "stages",
            "Time per stage",
            [Bar(stage["name"], FIRST, (stage["seconds"],)) for stage in data.stages],
            [("wall time", duration)],
        ),
    }


def compression_plot(evaluation: Mapping[str, Any]) -> str:
    """The model beside the compressors, in bits per byte."""
    codes = [
        ("this model", "bits_per_byte", FIRST),
        ("xz -9", "xz_bits_per_byte", QUIET),
        ("gzip -9", "gzip_bits_per_byte", QUIET),
    ]
    bars = [Bar(label, color, (evaluation[key],)) for label, key, color in codes if evaluation.get(key) is not None]
    return bar_plot("compression", "Compression", bars, [("bits per byte", _two_decimals)])


def cost_plot(name: str, title: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Loss and bits per byte by classes of powers of two."""
    bars = [
        Bar(ranged(row["at_most"]), FIRST, (row["loss"], row["bits_per_byte"] or 0.0))
        for row in rows
        if row["num_tokens"] >= MIN_TOKENS
    ]
    return bar_plot(name, title, bars, [("nats per token", _two_decimals), ("bits per byte", _two_decimals)])


def ranged(at_most: int) -> str:
    """The numbers of a class: 1, 2, 3-4, 5-8."""
    return compact(at_most) if at_most < 3 else f"{count(at_most // 2 + 1)}-{count(at_most)}"


def broken_down(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables by repository and by licence, and how much of each is left out."""
    return [
        {"title": title, "heading": heading, "rows": rows[:NUM_GROUPS], "num_more": max(0, len(rows) - NUM_GROUPS)}
        for title, heading, rows in (
            ("By repository", "repository", found.get("by_repository", [])),
            ("By licence", "SPDX expression", found.get("by_license", [])),
        )
        if rows
    ]


def shown_answers(answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Of each kind, some of the best answers and some of the others: what the figures stand for."""
    groups = []
    for kind, title in (("line", "Next lines"), ("body", "Bodies of functions")):
        ranked = sorted((each for each in answers if each["kind"] == kind), key=lambda each: -each["similarity"])
        if ranked:
            middle = len(ranked) // 2
            shown = [*ranked[:NUM_ANSWERS], *ranked[max(NUM_ANSWERS, middle) :][:NUM_ANSWERS]]
            groups.append({"title": title, "answers": shown, "num_answers": len(ranked)})
    return groups


def copies(answers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers with the longest copies from the training split."""
    traced = [each for each in answers if each.get("copied_from")]
    return sorted(traced, key=lambda each: -each["longest_copy"])[:NUM_COPIES]


def ledger(packed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The ledger of every split, and whether it balances: recomputed here, not believed."""
    return [
        {
            "tokens_padding": 0,  # of rows packed before there was any
            **split,
            "name": name,
            "balances": split["tokens_in"] == split["tokens_in_rows"] + split["tokens_remainder"],
        }
        for name, split in packed.get("splits", {}).items()
    ]


def samples(curated: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rejected documents to read, by reason, the commonest reason first."""
    rejected = curated.get("rejected", {})
    found: dict[str, list[Mapping[str, str]]] = {}
    for sample in curated.get("rejected_samples", []):
        found.setdefault(sample["reason"], []).append(sample)
    groups = [
        {
            "reason": reason,
            "num_documents": rejected.get(reason, {}).get("num_documents"),
            "documents": documents[:NUM_SAMPLES],
        }
        for reason, documents in found.items()
    ]
    return sorted(groups, key=lambda group: (-(group["num_documents"] or 0), group["reason"]))


def repositories(data: ReportData) -> list[dict[str, Any]]:
    """The repositories with most curated text."""
    held_out = set(data.curated.get("validation_repositories", []))
    rows = [
        {"name": name, "split": "validation" if name in held_out else "train", **amount}
        for name, amount in data.curated.get("by_repository", {}).items()
    ]
    return sorted(rows, key=lambda row: (-row["size_bytes"], row["name"]))[:NUM_REPOSITORIES]


def median_speed(history: list[dict[str, Any]]) -> float | None:
    """Median tokens per second: the first steps, which compile and warm up, do not weigh on it."""
    speeds = sorted(event["tokens_per_second"] for event in history if event["kind"] == "step")
    return speeds[len(speeds) // 2] if speeds else None


def token(value: str) -> str:
    """A token as Python would write it, its spaces as open boxes: most of them differ in nothing else."""
    return repr(value).replace(" ", "\u2423")


def _two_decimals(value: float) -> str:
    return f"{value:.2f}"


def _general(value: float) -> str:
    return f"{value:.3g}"


def _points(events: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(event["step"], event[key]) for event in events if event.get(key) is not None]
