"""The lines of a text, as `str.splitlines` sees them, counted and measured without making a string of each.

What is counted is a text whose only line ends are line feeds, as `plain` gives it. Most texts are that already.
"""

ASCII_ENDS = "\r\v\f\x1c\x1d\x1e"
ENDS = f"{ASCII_ENDS}\x85\u2028\u2029"
"""What ends a line beside the line feed."""


def plain(text: str) -> str:
    """The text with every line end as a line feed: the same lines, and itself if there is nothing to change."""
    if any(end in text for end in (ASCII_ENDS if text.isascii() else ENDS)):
        return "".join(f"{line}\n" for line in text.splitlines())
    return text


def num_lines(text: str) -> int:
    """How many lines the text has."""
    return text.count("\n") + (not text.endswith("\n") and bool(text))


def first_lines(text: str, number: int) -> list[str]:
    """The first lines, at most so many."""
    lines = text.split("\n", number)  # what is after the last line feed comes last, and is a line if it is something
    return lines[:number] if len(lines) > number or lines[-1] else lines[:-1]


def has_longer(text: str, limit: int) -> bool:
    """Whether a line has more than `limit` characters. It jumps from line end to line end, `limit` at a time."""
    start = 0
    while len(text) - start > limit:
        stop = text.rfind("\n", start, start + limit + 1)
        if stop < 0:
            return True
        start = stop + 1
    return False
