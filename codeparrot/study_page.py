"""What the runs of a study say together, on one page.

Of every run: its bits per byte on the validation split, with the interval by repository, and whether the best run is
really better (`codeparrot.bootstrap`: the same repositories drawn anew for both; all comparisons hold together with
95 %). With `scaling`: the law of size and tokens (`codeparrot.scaling`), fitted without the runs that are held out,
what it predicts of them, and, fitted to all runs, the best size for a budget of compute.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from codeparrot import scaling
from codeparrot.bootstrap import CONFIDENCE, Interval, difference_interval
from codeparrot.errors import ScalingError
from codeparrot.log_plots import Axes, Band, Mark, Series, log_plot, power, strengths
from codeparrot.pages import html_page
from codeparrot.plots import FIRST, QUIET, SECOND, compact
from codeparrot.scaling import Estimate, Fit, Law, Point

MAX_EPOCHS = 4
"""Repeated tokens are worth about as much as new ones up to so many times (Muennighoff et al., "Scaling
Data-Constrained Language Models", 2023, section 6)."""
ISOFLOP_CURVES = 4
NEAR = 1.25
"""Factor of compute within which a run is shown with a curve of equal compute."""
CURVE_POINTS = 40


@dataclass(frozen=True)
class Result:
    """A run of a study, measured."""

    run_name: str
    labels: Mapping[str, str]
    """By axis."""
    values: Mapping[str, float]
    """By axis, where they are numbers."""
    held_out: bool
    num_parameters: int
    tokens: int
    bits_per_byte: float
    interval: Mapping[str, Any] | None
    loss: float
    """Nats per token, on the validation split."""
    unique_tokens: int
    """In the training rows."""
    seconds: float
    """Of training and evaluation."""
    repositories: Mapping[str, Sequence[float]]
    """(bits, bytes) of each in the validation rows."""

    @property
    def point(self) -> Point:
        return Point(self.num_parameters, self.tokens, self.bits_per_byte)


@dataclass(frozen=True)
class Question:
    """What is asked of the law."""

    budgets: Sequence[float]
    tolerance: float


def findings(name: str, results: Sequence[Result], question: Question | None, seed: int) -> dict[str, Any]:
    """All figures, as they stand in `results.json`."""
    best = min(results, key=lambda result: result.bits_per_byte)
    runs = [
        {
            **{key: value for key, value in asdict(result).items() if key != "repositories"},
            "flops": result.point.flops,
            "behind": asdict(behind) if (behind := _behind(result, best, len(results), seed)) else None,
        }
        for result in results
    ]
    law = _law_findings(results, question, seed) if question else None
    return {"study_name": name, "best": best.run_name, "runs": runs, "scaling": law}


def _behind(result: Result, best: Result, num_results: int, seed: int) -> Interval | None:
    """How many bits per byte a run needs more than the best; None where the two did not predict the same text."""
    names = sorted(result.repositories)
    if result is best or names != sorted(best.repositories):
        return None
    own, others = (np.array([each.repositories[name] for name in names]) for each in (result, best))
    if not np.array_equal(own[:, 1], others[:, 1]):
        return None
    confidence = 1 - (1 - CONFIDENCE) / max(1, num_results - 1)
    return difference_interval(own[:, 0], others[:, 0], own[:, 1], seed, confidence)


def _law_findings(results: Sequence[Result], question: Question, seed: int) -> dict[str, Any]:
    held_out = [result for result in results if result.held_out]
    known = [result for result in results if not result.held_out]
    try:
        tested = scaling.fit([result.point for result in known], seed)
        whole = scaling.fit([result.point for result in results], seed)
    except ScalingError as error:
        return {"refused": str(error)}
    predictions = [_prediction(tested, result, question.tolerance) for result in held_out]
    largest = max(result.point.flops for result in results)
    holds = bool(predictions) and all(each["holds"] for each in predictions)
    reach = largest / max(result.point.flops for result in known) if holds else 1.0
    end = scaling.end_of_extrapolation(whole, largest, reach, question.tolerance)
    unique = min(result.unique_tokens for result in results)
    return {
        "refused": None,
        "tested": _law(tested),
        "law": _law(whole),
        "predictions": predictions,
        "tolerance": question.tolerance,
        "largest_flops": largest,
        "end": asdict(end),
        "unique_tokens": unique,
        "optimum": [
            _optimum(whole, flops, end.flops, unique) for flops in sorted({*question.budgets, largest, end.flops})
        ],
        "frontier": [_optimum(whole, flops, end.flops, unique) for flops in _spread(results, 3 * end.flops)],
    }


def _spread(results: Sequence[Result], highest: float) -> list[float]:
    lowest = min(result.point.flops for result in results)
    found: list[float] = np.geomspace(lowest, highest, CURVE_POINTS).tolist()
    return found


def _law(found: Fit) -> dict[str, Any]:
    """The constants, with intervals, and the number of points."""
    names = ("irreducible", "size_factor", "size_exponent", "data_factor", "data_exponent")
    constants = {name: _estimate(found.of(_getter(name))) for name in names}
    exponent = found.of(lambda law: law.data_exponent / (law.size_exponent + law.data_exponent))
    return {**constants, "optimum_exponent": _estimate(exponent), "num_points": found.num_points}


def _getter(name: str) -> Callable[[Law], float]:
    return lambda law: float(getattr(law, name))


def _estimate(found: Estimate) -> dict[str, float]:
    return {"value": found.value, "low": found.interval.low, "high": found.interval.high}


def _prediction(found: Fit, result: Result, tolerance: float) -> dict[str, Any]:
    estimate = found.predicted(result.num_parameters, result.tokens)
    error = estimate.value / result.bits_per_byte - 1
    return {
        "run_name": result.run_name,
        "measured": result.bits_per_byte,
        "predicted": _estimate(estimate),
        "error": error,
        "holds": abs(error) <= tolerance,
    }


def _optimum(found: Fit, flops: float, end: float, unique_tokens: int) -> dict[str, Any]:
    """The best size for a compute, and what it would reach."""
    tokens = found.of(lambda law: law.optimum(flops)[1])
    return {
        "flops": flops,
        "num_parameters": _estimate(found.of(lambda law: law.optimum(flops)[0])),
        "tokens": _estimate(tokens),
        "bits_per_byte": _estimate(found.of(lambda law: law.lowest_loss(flops))),
        "epochs": tokens.value / unique_tokens,
        "beyond": flops > end * (1 + 1e-9),
    }


def render(found: Mapping[str, Any], axes: Sequence[str], recipe: str, created: str) -> str:
    """The study as one self-contained HTML page. `axes`: their names; `recipe`: the study, as text."""
    from markupsafe import Markup

    law = found["scaling"] if found["scaling"] and not found["scaling"]["refused"] else None
    plots = {f"axis{place}": axis_plot(found, axis, axes, place) for place, axis in enumerate(axes)}
    if law:
        plots |= {"compute": compute_plot(found, law), "isoflop": isoflop_plot(found, law)}
    drawn = {name: Markup(plot) for name, plot in plots.items() if plot}  # noqa: S704 - drawn and escaped by us
    ranked = sorted(found["runs"], key=lambda run: run["bits_per_byte"])
    return html_page(
        "study_page.html.j2",
        found=found,
        law=law,
        refused=(found["scaling"] or {}).get("refused"),
        axes=list(axes),
        ranked=ranked,
        plots=drawn,
        text=recipe,
        created=created,
        power=power,
        max_epochs=MAX_EPOCHS,
    )


def axis_plot(found: Mapping[str, Any], axis: str, axes: Sequence[str], place: int) -> str:
    """Bits per byte by the values of an axis of numbers, a line for each combination of the other axes."""
    runs = [run for run in found["runs"] if axis in run["values"]]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run["labels"][other] for other in axes if other != axis), []).append(run)
    strong = strengths(len(groups))
    series = [
        Series(" ".join(labels), FIRST, _marks(group, lambda run: float(run["values"][axis])), strong[index])
        for index, (labels, group) in enumerate(groups.items())
    ]
    values = [run["values"][axis] for run in runs]
    wide = bool(values) and min(values) > 0
    form = Axes(axis, "bits per byte", lambda value: f"{value:g}", _bits, log_x=wide)
    return log_plot(f"axis{place}", f"Bits per byte by {axis}", form, series)


def _bits(value: float) -> str:
    return f"{value:.3f}"


def _marks(runs: Sequence[Mapping[str, Any]], x: Callable[[Mapping[str, Any]], float]) -> list[Mark]:
    marks = []
    for run in sorted(runs, key=x):
        interval = run["interval"] or {}
        marks.append(Mark(x(run), run["bits_per_byte"], interval.get("low"), interval.get("high")))
    return marks


def compute_plot(found: Mapping[str, Any], law: Mapping[str, Any]) -> str:
    """Bits per byte against compute: runs of each size, and the lowest loss that the law knows for a compute."""
    sizes: dict[int, list[Any]] = {}
    for run in found["runs"]:
        sizes.setdefault(run["num_parameters"], []).append(run)
    strong = dict(zip(sorted(sizes), strengths(len(sizes)), strict=True))
    series = []
    for size in sorted(sizes):
        color = SECOND if any(run["held_out"] for run in sizes[size]) else FIRST
        marks = [Mark(mark.x, mark.y) for mark in _marks(sizes[size], lambda run: float(run["flops"]))]
        series.append(Series(compact(size), color, marks, strong[size]))
    best = [_mark(row) for row in law["frontier"]]
    series.append(Series("", QUIET, [Mark(mark.x, mark.y) for mark in best], marker=""))
    return log_plot(
        "compute",
        "Bits per byte against compute",
        Axes("FLOPs (6 N D)", "bits per byte", power, lambda value: f"{value:.2f}"),
        series,
        bands=[Band(QUIET, best)],
        legend={"fitted": FIRST, "held out": SECOND, "best for its compute": QUIET},
        end=law["end"]["flops"],
    )


def _mark(row: Mapping[str, Any]) -> Mark:
    return Mark(row["flops"], *(row["bits_per_byte"][name] for name in ("value", "low", "high")))


def isoflop_plot(found: Mapping[str, Any], law: Mapping[str, Any]) -> str:
    """Bits per byte by size at equal compute: the law's curves, and runs whose compute is near."""
    constants = ("irreducible", "size_factor", "size_exponent", "data_factor", "data_exponent")
    known = Law(*(law["law"][name]["value"] for name in constants))
    computes = sorted(run["flops"] for run in found["runs"])
    sizes = [run["num_parameters"] for run in found["runs"]]
    levels = np.geomspace(computes[0] * NEAR, computes[-1] / NEAR, ISOFLOP_CURVES).tolist()
    series = []
    for flops, strength in zip(levels, strengths(len(levels)), strict=True):
        around = np.geomspace(min(sizes) / 2, max(sizes) * 2, CURVE_POINTS).tolist()
        curve = [Mark(size, known.loss(size, flops / 6 / size)) for size in around]
        lowest = known.lowest_loss(flops)
        curve = [mark for mark in curve if mark.y < 1.35 * lowest]
        near = [run for run in found["runs"] if 1 / NEAR < run["flops"] / flops < NEAR]
        series.append(Series(power(flops), FIRST, curve, strength, marker=""))
        series.append(Series("", FIRST, _marks(near, lambda run: float(run["num_parameters"])), strength, line=False))
        series.append(Series("", SECOND, [Mark(known.optimum(flops)[0], lowest)], strength, line=False, marker="D"))
    return log_plot(
        "isoflop",
        "Bits per byte by size at equal compute",
        Axes("parameters", "bits per byte", compact, lambda value: f"{value:.2f}"),
        series,
        legend={"equal compute": FIRST, "its best size": SECOND},
    )
