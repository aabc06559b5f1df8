"""Drawings over many sizes: points with intervals, and bands, on logarithmic axes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from codeparrot.plots import INK, PLAIN_INCHES, Format, add_legend, as_svg, new_figure, styled

ROOMY_INCHES = 1.25 * PLAIN_INCHES
MAX_TICKS = 6


@dataclass(frozen=True)
class Mark:
    """A point, and the interval of its height if it is known."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together."""

    label: str
    """At its last point; empty: none."""
    color: str
    marks: Sequence[Mark]
    strength: float = 1.0
    """From pale, 0, to full, 1: an order among series of one colour."""
    line: bool = True
    marker: str = "o"


@dataclass(frozen=True)
class Band:
    """An interval along an axis."""

    color: str
    marks: Sequence[Mark]


@dataclass(frozen=True)
class Axes:
    """What is drawn against what."""

    x: str
    y: str
    form_x: Format
    form_y: Format
    log_x: bool = True


def log_plot(
    name: str,
    title: str,
    axes: Axes,
    series: Sequence[Series],
    *,
    bands: Sequence[Band] = (),
    legend: dict[str, str] | None = None,
    end: float | None = None,
) -> str:
    """All series, over the bands. `end`: where a dashed line stands."""
    series = [each for each in series if each.marks]
    if not series:
        return ""
    with styled(name):
        figure = new_figure(ROOMY_INCHES)
        ax = figure.subplots()
        for band in bands:
            x, low, high = zip(*((mark.x, mark.low, mark.high) for mark in band.marks), strict=True)
            ax.fill_between(x, low, high, color=band.color, alpha=0.3, linewidth=0)
        for each in series:
            _draw(ax, each)
        if end is not None:
            ax.axvline(end, color=INK, linestyle="--", linewidth=1)
        ax.set(title=axes.y, xlabel=axes.x)
        ax.margins(x=0.09)
        if axes.log_x:
            ax.set_xscale("log")
        _label_axes(ax, axes)
        if legend:
            add_legend(figure, legend)
        return as_svg(figure, name, f"{title}. {_described(series, axes)}.")


def _draw(ax: Any, series: Series) -> None:
    alpha = 0.3 + 0.7 * series.strength
    x, y = zip(*((mark.x, mark.y) for mark in series.marks), strict=True)
    style = "-" if series.line else ""
    ax.plot(x, y, color=series.color, alpha=alpha, linestyle=style, marker=series.marker, markersize=4, linewidth=1.4)
    for mark in series.marks:
        if mark.low is not None and mark.high is not None:
            ax.plot([mark.x, mark.x], [mark.low, mark.high], color=series.color, alpha=alpha * 0.7, linewidth=1.1)
    if series.label:
        last = series.marks[-1]
        ax.annotate(series.label, (last.x, last.y), (5, 0), textcoords="offset points", va="center", fontsize=8.5)


def _label_axes(ax: Any, axes: Axes) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, NullLocator

    if axes.log_x:
        low, high = ax.get_xlim()
        subs = (1.0,) if high / low > 1000 else (1.0, 3.0) if high / low > 30 else (1.0, 2.0, 5.0)
        ax.xaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=MAX_TICKS))
    ax.xaxis.set_major_formatter(lambda value, _: axes.form_x(value))
    ax.yaxis.set_major_locator(MaxNLocator(nbins=MAX_TICKS))
    ax.yaxis.set_major_formatter(lambda value, _: axes.form_y(value))


def _described(series: Sequence[Series], axes: Axes) -> str:
    named = [each for each in series if each.label]
    return "; ".join(
        f"{each.label}: "
        + ", ".join(f"{axes.form_y(mark.y)} at {axes.form_x(mark.x)}" for mark in (each.marks[0], each.marks[-1]))
        for each in named
    )


def power(value: float) -> str:
    """A count of operations: 3e15."""
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def strengths(number: int) -> list[float]:
    """From pale to full."""
    return [(place + 1) / number for place in range(number)]
