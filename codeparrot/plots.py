"""The plots of the report: SVG that takes its colours from the page.

matplotlib draws in stand-in colours, which become CSS variables, so one drawing serves the light and the dark scheme.
Text stays text (selectable, in the page's own font). Every id carries the plot's name: ids of all inline SVGs share
the page, and matplotlib's repeat. Colours are Okabe and Ito's, told apart in every form of colour blindness.

Drawings are narrow (360 units), because a phone shows them at that width and text must not shrink there.
"""

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.figure import Figure

INK, GRID, QUIET, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404", "#050505"
VARIABLES = {INK: "--muted", GRID: "--line", QUIET: "--quiet", FIRST: "--first", SECOND: "--second"}
WIDTH_INCHES = 5.0
PLAIN_INCHES = 2.7
BAR_INCHES = 0.2
FEW_BARS = 4
"""So few are drawn thicker, or the plot would be a strip."""
MAX_LABEL = 22
MAX_CATEGORIES = 10
MAX_TOKEN_LENGTH = 20
"""Longer vocabulary entries share the last column."""
STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a licence may be called "$x$"
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.borderpad": 0,
    "legend.borderaxespad": 0.2,
    "legend.handlelength": 1.2,
    "legend.handleheight": 0.8,
    "legend.columnspacing": 1.4,
}

Format = Callable[[float], str]


@dataclass(frozen=True)
class Bar:
    """One category, with one value for each panel."""

    label: str
    color: str
    values: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One line of a plot over steps."""

    label: str
    color: str
    points: Sequence[tuple[float, float]]
    marker: str = ""


def count(value: float) -> str:
    """1,234,567."""
    return f"{round(value):,}"


def compact(value: float) -> str:
    """3.41 M, 8 k: up to three figures, and thousand, million or billion."""
    number, unit = _scaled(value, ("", "k", "M", "B", "T"))
    return f"{number:.3g} {unit}".strip()


def size(value: float) -> str:
    """12.3 kB: three figures, in powers of 1000."""
    number, unit = _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))
    places = 0 if unit == "B" else max(0, 2 - math.floor(math.log10(number)))
    return f"{number:.{places}f} {unit}"


def duration(seconds: float) -> str:
    """4.2 s, 3 min 05 s, 2 h 07 min."""
    if seconds < 119.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def _scaled(value: float, units: Sequence[str]) -> tuple[float, str]:
    """The number rounded to three figures, below 1000 unless units run out, and its unit."""
    for power, unit in enumerate(units):
        number = float(f"{value / 1000**power:.3g}")
        if abs(number) < 1000:
            return number, unit
    return value / 1000 ** (len(units) - 1), units[-1]


def visible(value: object) -> str:
    """Text in which everything invisible but spaces and line ends is escaped: control characters, bidi marks, NBSP."""
    return "".join(
        character if character.isprintable() or character in "\n\t" else repr(character)[1:-1]
        for character in str(value)
    )


def share_plot(name: str, title: str, parts: Sequence[tuple[str, str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Documents and bytes by category. `parts`: (legend, colour, {category: {"num_documents", "size_bytes"}})."""
    largest: dict[str, float] = {}
    for _, _, found in parts:
        for category, amount in found.items():
            largest[category] = max(largest.get(category, 0), amount["num_documents"])
    ranked = sorted(largest, key=lambda category: (-largest[category], category))
    groups = [(label, [label]) for label in ranked[:MAX_CATEGORIES]]
    if len(ranked) > MAX_CATEGORIES:
        groups.append((f"{len(ranked) - MAX_CATEGORIES} others", ranked[MAX_CATEGORIES:]))
    bars = [
        Bar(label, color, tuple(sum(found[key][unit] for key in present) for unit in ("num_documents", "size_bytes")))
        for label, categories in groups
        for _, color, found in parts
        if (present := [key for key in categories if key in found])
    ]
    legend = {label: color for label, color, found in parts if found}
    return bar_plot(name, title, bars, [("documents", count), ("bytes", size)], legend)


def bar_plot(
    name: str,
    title: str,
    bars: Sequence[Bar],
    panels: Sequence[tuple[str, Format]],
    legend: Mapping[str, str] | None = None,
) -> str:
    """Horizontal bars, each with its value written at its end; consecutive bars of one label form a group."""
    if not bars:
        return ""
    groups: dict[str, list[float]] = {}
    heights = []
    for index, bar in enumerate(bars):
        gap = 0.45 * len(groups.keys() | {bar.label})
        heights.append(index + gap)
        groups.setdefault(bar.label, []).append(index + gap)
    described = [
        f"{bar.label}: "
        # A size says itself that it is in bytes.
        + ", ".join(
            f"{form(value)} {unit}".removesuffix(" bytes")
            for value, (unit, form) in zip(bar.values, panels, strict=True)
        )
        for bar in bars
    ]
    bar_inches = BAR_INCHES if len(bars) > FEW_BARS else 2 * BAR_INCHES
    with styled(name):
        figure = new_figure(0.4 + 0.25 * bool(legend) + bar_inches * (heights[-1] + 1))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for panel, (ax, (unit, form)) in enumerate(zip(axes, panels, strict=True)):
            values = [bar.values[panel] for bar in bars]
            ax.barh(heights, values, height=0.82, color=[bar.color for bar in bars])
            for height, value in zip(heights, values, strict=True):
                ax.annotate(form(value), (value, height), (4, 0), textcoords="offset points", va="center")
            ax.set(title=unit, xlim=(0, (max(values) or 1) * 1.62), xticks=[])
            ax.spines["bottom"].set_visible(False)
            ax.grid(visible=False)
        middles = [sum(group) / len(group) for group in groups.values()]
        axes[0].set_yticks(middles, [_label(label) for label in groups])
        axes[0].set_ylim(heights[-1] + 0.7, heights[0] - 0.7)
        if legend:
            add_legend(figure, legend)
        return as_svg(figure, name, f"{title}. {'; '.join(described)}.")


def token_length_plot(name: str, title: str, histogram: Mapping[str, int]) -> str:
    """How many vocabulary entries have 1, 2, ... characters."""
    lengths = {int(length): number for length, number in histogram.items()}
    last = min(max(lengths, default=0), MAX_TOKEN_LENGTH)
    numbers = [lengths.get(length, 0) for length in range(1, last)]
    numbers.append(sum(number for length, number in lengths.items() if length >= last))
    labels = [count(length) for length in range(1, last + 1)]
    if last < max(lengths, default=0):
        labels[-1] += "+"
    return _column_plot(name, title, labels, numbers, every=1 if last < 12 else 2, units=("characters", "tokens"))


def document_length_plot(name: str, title: str, histogram: Mapping[str, int], max_seq_len: int) -> str:
    """How many documents have at most 16, 32, ... tokens; a dashed line where a row ends."""
    bounds = {int(bound): number for bound, number in histogram.items()}
    if not bounds:
        return ""
    low, high = (round(math.log2(bound)) for bound in (min(bounds), max(bounds)))
    numbers = [bounds.get(2**power, 0) for power in range(low, high + 1)]
    labels = [count(2**power) for power in range(low, high + 1)]
    row = math.log2(max_seq_len) - low + 0.5
    every = math.ceil(len(labels) / 6)
    return _column_plot(name, title, labels, numbers, every=every, units=("tokens, at most", "documents"), line=row)


def _column_plot(
    name: str,
    title: str,
    labels: Sequence[str],
    numbers: Sequence[float],
    *,
    every: int,
    units: tuple[str, str],
    line: float | None = None,
) -> str:
    if not any(numbers):
        return ""
    described = "; ".join(f"{label} {units[0]}: {count(number)}" for label, number in zip(labels, numbers, strict=True))
    with styled(name):
        figure = new_figure(PLAIN_INCHES)
        ax = figure.subplots()
        ax.bar(range(len(numbers)), numbers, width=0.82, color=FIRST)
        # The last column is always labelled: it may be the open-ended one.
        ticks = range((len(labels) - 1) % every, len(labels), every)
        ax.set_xticks(ticks, [labels[tick] for tick in ticks])
        ax.set(title=units[1], xlabel=units[0], xlim=(-0.7, len(numbers) - 0.3))
        ax.grid(visible=False, axis="x")
        ax.yaxis.set_major_formatter(lambda value, _: compact(value))
        if line is not None and -0.5 <= line <= len(numbers) - 0.5:
            ax.axvline(line, color=SECOND, linestyle="--", linewidth=1.4)
        return as_svg(figure, name, f"{title}. {described}.")


def curve_plot(name: str, title: str, curves: Sequence[Curve], unit: str, form: Format, *, zero: bool) -> str:
    """Curves over the training step. `zero`: whether the axis starts there."""
    curves = [curve for curve in curves if curve.points]
    if not curves:
        return ""
    described = [
        f"{curve.label}: {form(curve.points[0][1])} at step {count(curve.points[0][0])}, "
        f"{form(curve.points[-1][1])} at step {count(curve.points[-1][0])}"
        for curve in curves
    ]
    with styled(name):
        figure = new_figure(PLAIN_INCHES)
        ax = figure.subplots()
        for curve in curves:
            marker = curve.marker or ("o" if len(curve.points) == 1 else "")
            ax.plot(*zip(*curve.points, strict=True), color=curve.color, marker=marker, markersize=4, linewidth=1.6)
        ax.set(title=unit, xlabel="step")
        ax.xaxis.set_major_locator(_whole_steps())
        ax.xaxis.set_major_formatter(lambda value, _: count(value))
        ax.yaxis.set_major_formatter(lambda value, _: form(value))
        if zero:
            ax.set_ylim(bottom=0)
        if len(curves) > 1:
            add_legend(figure, {curve.label: curve.color for curve in curves})
        return as_svg(figure, name, f"{title}, {unit}. {'; '.join(described)}.")


def _whole_steps() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=5, integer=True)


def _label(label: str) -> str:
    """Fit for an axis: short, and ASCII, whose glyphs matplotlib can measure."""
    plain = visible(label).replace("\n", "\\n").replace("\t", "\\t").encode("ascii", "backslashreplace").decode()
    return plain if len(plain) <= MAX_LABEL else plain[: MAX_LABEL - 3] + "..."


@contextmanager
def styled(name: str) -> "Iterator[None]":
    """Our style alone, whatever the user's matplotlibrc says."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({**STYLE, "svg.hashsalt": name})
        yield


def new_figure(inches: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH_INCHES, inches), layout="constrained")


def add_legend(figure: "Figure", colors: Mapping[str, str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=color, label=label) for label, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))


def as_svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an element of an HTML page: ids of its own, colours of the page."""
    sink = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(sink, format="svg", transparent=True, metadata=nothing)
    drawing = re.sub(r"<!--.*?-->|<style.*?</style>", "", sink.getvalue(), flags=re.DOTALL)
    drawing = drawing[drawing.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', drawing)
    assert box is not None, "matplotlib writes a viewBox"
    opening = f'<svg role="img" aria-label="{escape(visible(description))}" {box[0]}>'
    # Inside tags only: what stands between them is text, and may look like anything.
    body = re.sub(r"<[^>]*>", lambda tag: _of_page(tag[0], name), drawing[drawing.index(">") + 1 :])
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()


def _of_page(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', tag).replace("url(#", f"url(#{name}-")
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    return re.sub("|".join(VARIABLES), lambda color: f"var({VARIABLES[color[0]]})", tag)
