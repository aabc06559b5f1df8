"""Stop sequences: text at which a completion ends, wherever the borders of its tokens are.

Text that may be the beginning of a stop sequence is held back until the next tokens tell.
"""

from collections.abc import Sequence


class StopSequences:
    """What has been said of one completion, and whether it is over."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(what can be shown, whether a stop sequence was found): the text before the first one."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        certain = len(text) - max(_overlap(text, stop) for stop in self._stops)
        self._held = text[certain:]
        return text[:certain], False

    def end(self) -> str:
        """What was held back: no text follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of the stop sequence, at most all but one."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
