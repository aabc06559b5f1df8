"""Which files of a folder, a repository or an archive a source offers: settings that these kinds share."""

import re
from fnmatch import translate
from functools import lru_cache

from pydantic import Field, field_validator

from codeparrot.licenses import is_license_file, spdx
from codeparrot.settings import Settings

NOT_ONES_OWN = (".git", ".hg", ".nox", ".svn", ".tox", ".venv", "__pycache__", "node_modules", "site-packages", "venv")


class SelectionSettings(Settings):
    """Which files, and under which licence."""

    kind: str
    name: str = Field(min_length=1)
    """How this source is called in the corpus."""
    license: str | None = None
    """SPDX expression for every file, for example `LicenseRef-Proprietary`; null: that of the nearest licence file."""
    include: tuple[str, ...] = ("*.py",)
    """Globs on the path in the source or on the file name."""
    exclude: tuple[str, ...] = ()
    """Globs that win over `include`."""
    exclude_folders: tuple[str, ...] = NOT_ONES_OWN
    """Names of folders to pass over, wherever they stand: what is in them is somebody else's code, or no code."""

    @field_validator("license")
    @classmethod
    def _is_spdx(cls, license: str | None) -> str | None:
        if license is not None and spdx(license) is None:
            raise ValueError("not an SPDX expression; write for example Apache-2.0 or LicenseRef-Proprietary")
        return license and spdx(license)

    def takes(self, path: str) -> bool:
        """Whether a file is one of those wanted, by its path."""
        wanted = matches(path, self.include) and not matches(path, self.exclude)
        return wanted and not self._is_of_others(path)

    def asks(self, path: str) -> bool:
        """Whether a file is one that may tell the licence of others, by its path."""
        return self.license is None and is_license_file(path) and not self._is_of_others(path)

    def _is_of_others(self, path: str) -> bool:
        return not {*path.split("/")[:-1]}.isdisjoint(self.exclude_folders)


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether the path, or its last part, matches one of the globs (`*` also crosses `/`)."""
    expression = _expression(patterns)
    return expression.match(path) is not None or expression.match(path.rsplit("/", 1)[-1]) is not None


@lru_cache(maxsize=64)
def _expression(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """One that matches what any of the globs does; without globs, nothing."""
    return re.compile("|".join(map(translate, patterns)) or r"(?!)")
