"""What pages and cards share: one frame and style, numbers with units, and text of strangers that is shown, not obeyed.

An HTML page extends `pages.html.j2` and takes what it repeats from `pages.macros.html.j2`; everything is escaped. In
Markdown nothing is escaped by itself: each text of a stranger goes through `cell`, `code`, `block` or `fenced`.
"""

import json
import re
from pathlib import Path
from typing import Any

from codeparrot.plots import compact, count, duration, size, visible

MISSING = "n/a"
ACTING = frozenset("|<>&`*[]\\_~$")
"""Characters that are markup inside a line of Markdown."""


def html_page(template: str, **values: Any) -> str:
    """A page from one of our templates; what is missing renders as nothing."""
    return _rendered(template, values, html=True)


def markdown(template: str, **values: Any) -> str:
    """A Markdown document from one of our templates; what is missing is an error."""
    return _rendered(template, values, html=False)


def _rendered(template: str, values: dict[str, Any], *, html: bool) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=html,  # noqa: S701 - what is no HTML is Markdown, whose filters escape
        undefined=jinja2.ChainableUndefined if html else jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    numbers = {"count": count, "compact": compact, "size": size, "duration": duration, "decimal": decimal}
    numbers["share"] = share
    environment.filters |= {name: _or_missing(form) for name, form in numbers.items()} if html else numbers
    environment.filters |= {"visible": visible, "cell": cell, "code": code, "block": block, "fenced": fenced}
    return environment.get_template(template).render(values)


def _or_missing(form: Any) -> Any:
    """The format, for values that may be missing: an evaluation that never ran is not zero."""
    return lambda value, *rest: form(value, *rest) if isinstance(value, (int, float)) else MISSING


def decimal(value: float, places: int = 2) -> str:
    """1,234.50."""
    return f"{value:,.{places}f}"


def share(value: float) -> str:
    """12.3 %; what is more than nothing never shows as 0."""
    percent = 100 * value
    if 0 < percent < 0.05:
        return "< 0.1 %"
    return f"{percent:.1f} %"


def cell(value: object) -> str:
    """Any value as the text of a cell of a table: neither markup nor HTML of it acts."""
    text = " ".join(visible(value if isinstance(value, str) else json.dumps(value)).split())
    return "".join(f"&#{ord(character)};" if character in ACTING else character for character in text)


def code(value: str) -> str:
    """The same as a span of code, unless it holds what ends one in a table."""
    text = " ".join(visible(value).split())
    return f"`{text}`" if text and not {"`", "|"} & {*text} else cell(text or "(empty)")


def block(text: str) -> str:
    """Any text as an indented block of code."""
    return "\n".join(f"    {line}".rstrip() for line in visible(text).split("\n"))


def fenced(text: str, language: str = "") -> str:
    """Any text as a fenced block of code, whose fence is longer than any run of backticks in it."""
    shown = visible(text).removesuffix("\n")
    longest = max(map(len, re.findall("`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{shown}\n{fence}"
