"""Programs that nobody has read, run so that they harm nothing."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from codeparrot.settings import Settings


class SandboxSettings(Settings):
    """What a program may use."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    passed: bool
    reason: str


class Sandbox:
    """Runs programs. Used in a `with` block."""

    def __init__(self, settings: SandboxSettings | None = None) -> None:
        self._settings = settings or SandboxSettings()

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, programs: Iterable[str]) -> Iterator[Outcome]:
        """The outcome of each, in their order."""
        raise NotImplementedError
