"""The `directory` source: any folder of code.

Each immediate subfolder is a repository (so that the validation split can keep repositories apart), unless
`repository` names the whole folder as one. Symbolic links are not followed and special files (sockets, pipes,
devices) are not offered. The folder must be visible, under the same path, on every node that collects.
"""

import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from codeparrot.errors import SourceError
from codeparrot.sources.entry import Entry, printable
from codeparrot.sources.license_files import licensed
from codeparrot.sources.selection import SelectionSettings

logger = logging.getLogger(__name__)


class DirectorySettings(SelectionSettings):
    """A folder of code."""

    kind: Literal["directory"]
    path: Path
    """The folder; relative paths start at the working directory."""
    name: str = Field(default="directory", min_length=1)
    """How this source is called in the corpus."""
    repository: str | None = None
    """One repository name for the whole folder; null: each immediate subfolder is a repository."""
    revision: str | None = None
    """A commit or date to record with every document."""


class DirectorySource:
    """Lists a folder."""

    def __init__(self, settings: DirectorySettings) -> None:
        self.settings = settings

    def entries(self) -> Sequence[Entry]:
        root = self._root()
        found: list[Entry] = []
        license_files: list[Entry] = []
        for folder, subfolders, names in os.walk(os.fsencode(root), onerror=self._warn, followlinks=False):
            passed_over = set(map(os.fsencode, self.settings.exclude_folders))
            subfolders[:] = sorted(name for name in subfolders if name not in passed_over)
            for name in sorted(names):
                location = os.path.join(folder, name)
                path = printable(os.path.relpath(location, os.fsencode(root)))
                takes, asks = self.settings.takes(path), self.settings.asks(path)
                entry = self._entry(root, path, location) if takes or asks else None
                if entry is not None:
                    found += [entry] * takes
                    license_files += [entry] * asks
        if not found:
            wanted = ", ".join(self.settings.include)
            raise SourceError(f"source {self.settings.name!r}: folder {root} holds no file that matches {wanted}")
        return licensed(found, license_files)

    def _root(self) -> Path:
        where = f"source {self.settings.name!r}: "
        try:
            root = self.settings.path.expanduser().absolute()
            mode = root.stat().st_mode
        except FileNotFoundError:
            raise SourceError(f"{where}folder {root} does not exist") from None
        except (OSError, RuntimeError, ValueError) as error:  # no such user's home; a NUL in the path
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"{where}cannot read folder {self.settings.path}: {reason}") from error
        if not stat.S_ISDIR(mode):
            raise SourceError(f"{where}{root} is not a folder")
        if not os.access(root, os.R_OK | os.X_OK):
            raise SourceError(f"{where}no permission to read folder {root}")
        return root

    def _warn(self, error: OSError) -> None:
        logger.warning(
            "source %r: passed over folder %s: %s",
            self.settings.name,
            printable(os.fsencode(error.filename)),
            error.strerror,
        )

    def _entry(self, root: Path, path: str, location: bytes) -> Entry | None:
        try:
            status = os.lstat(location)
        except OSError:
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        first, slash, _ = path.partition("/")
        top = printable(os.fsencode(root.name))
        return Entry(
            source=self.settings.name,
            repository=self.settings.repository or (first if slash else top),
            path=path,
            revision=self.settings.revision,
            license=self.settings.license,
            size_bytes=status.st_size,
            stamp=status.st_mtime_ns,
            location=location,
        )
