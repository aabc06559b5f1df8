"""Stand-ins for what a test cannot make happen for real."""

from collections.abc import Iterable

from codeparrot.storage import LocalStorage


class Killed(BaseException):
    """The process was killed: nothing may catch it."""


class DyingStorage(LocalStorage):
    """A store whose process is killed just before its n-th change: nothing of that change happens."""

    def __init__(self, directory: str, num_changes: int) -> None:
        super().__init__(directory)
        self.num_changes = num_changes

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False, if_match: str | None = None) -> str:
        self._live()
        return super().write(path, data, only_if_absent=only_if_absent, if_match=if_match)

    def delete(self, paths: Iterable[str]) -> None:
        for path in paths:
            self._live()
            super().delete([path])

    def _live(self) -> None:
        if self.num_changes == 0:
            raise Killed
        self.num_changes -= 1
