"""The `bigquery` source: rows that were exported from a data warehouse, such as the public GitHub tables of BigQuery.

`docs/bigquery.md` has the query that exports them. What it writes, Parquet or JSON lines in many files, is read from a
folder or from any S3-compatible store, the one that `AWS_ENDPOINT_URL` names, in ranges (`table.py` says how, and what
that costs). A folder must be visible, under the same path, on every node that collects. Other exports and data sets in
an object store are read likewise, if `columns` names theirs.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import Field, field_validator

from codeparrot.errors import ConfigError, SourceError, StorageError
from codeparrot.sources.data_files import DataFile
from codeparrot.sources.entry import Entry
from codeparrot.sources.rows import Columns
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.table import entries_of
from codeparrot.storage import open_storage, parse_uri

EXPORTED = Columns(
    repository="repo_name", path="path", content="content", revision="ref", license="license", size="size"
)
"""As the query in docs/bigquery.md names them; its `copies` stays in the export."""


class BigQuerySettings(SelectionSettings):
    """An export of a table."""

    kind: Literal["bigquery"]
    uri: str
    """Where the files are: `s3://bucket/prefix`, or a folder; relative paths start at the working directory."""
    name: str = Field(default="bigquery", min_length=1)
    """How this source is called in the corpus."""
    files: tuple[str, ...] = Field(default=("*.parquet", "*.json", "*.jsonl", "*.json.gz", "*.jsonl.gz"), min_length=1)
    """Globs on the names of files below `uri`. What does not end in `.parquet` is JSON lines, maybe compressed."""
    columns: Columns = EXPORTED
    """The names of the columns."""

    @field_validator("uri")
    @classmethod
    def _is_place(cls, uri: str) -> str:
        try:
            parse_uri(uri)
        except ConfigError as error:
            raise ValueError(str(error).removeprefix("storage.uri: ")) from None
        return uri


class BigQuerySource:
    """Lists an export."""

    def __init__(self, settings: BigQuerySettings) -> None:
        self.settings = settings

    def entries(self) -> Sequence[Entry]:
        """Every row that is wanted."""
        settings = self.settings
        where = f"source {settings.name!r}: export {settings.uri}"
        files = self._files()
        if not files:
            raise SourceError(f"{where} holds no file that matches {', '.join(settings.files)}")
        found = entries_of(settings, settings.columns, files)
        if not found:
            raise SourceError(f"{where} holds no row that matches {', '.join(settings.include)}")
        return found

    def _files(self) -> list[DataFile]:
        try:
            storage = open_storage(self.settings.uri)
            return [
                DataFile(storage.uri, path, size, storage.tag(path) if size else "")
                for path, size in storage.list()
                if any(fnmatchcase(path, glob) for glob in self.settings.files)
            ]
        except StorageError as error:
            raise SourceError(f"source {self.settings.name!r}: {error}") from error
