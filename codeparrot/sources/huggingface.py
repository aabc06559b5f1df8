"""The `huggingface` source: a data set of code, on the Hugging Face hub or in a folder.

The `datasets` library finds out which files a configuration and a split have; they are then read where they are, in
ranges (`table.py` says how, and what that costs). Parquet and JSON lines, plain or compressed. No code of a data set is
run: the library has no such thing any more.

A data set on the hub needs `HF_HUB_OFFLINE=0`, on every node that collects; one that asks for a login also HF_TOKEN, or
the file that HF_TOKEN_PATH names. It is read at one commit, that of `revision` when it is listed. A folder must be
visible, under the same path, on every node that collects; its files may be symbolic links, as in the hub's own cache.

Two layouts are built in, for others `columns` names the columns. A licence is that of the row; of a list, as in
The Stack, which holds all that were found in the repository, all hold. Layouts without contents, such as that of
The Stack v2, cannot be read.
"""

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from codeparrot.errors import SourceError
from codeparrot.sources.data_files import HUB, DataFile
from codeparrot.sources.entry import Entry
from codeparrot.sources.rows import Columns, one_line
from codeparrot.sources.selection import SelectionSettings
from codeparrot.sources.table import entries_of
from codeparrot.storage import open_storage

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
READABLE = re.compile(r".*\.(parquet|(jsonl?|ndjson)(\.(gz|zst|bz2))?)", re.IGNORECASE)
"""The names of files in the formats that are read here."""
TRUE = ("1", "ON", "YES", "TRUE")
"""As the hub's client reads its variables."""

LAYOUTS = {
    "codeparrot-clean": Columns(repository="repo_name", path="path", content="content", license="license", size="size"),
    "the-stack": Columns(
        repository="max_stars_repo_name",
        path="max_stars_repo_path",
        content="content",
        revision="max_stars_repo_head_hexsha",
        license="max_stars_repo_licenses",
        size="size",
    ),
}


class HuggingFaceSettings(SelectionSettings):
    """A data set."""

    kind: Literal["huggingface"]
    dataset: str
    """Its id on the hub (`owner/name`), or a folder; relative paths start at the working directory, with `./`."""
    name: str = Field(default="huggingface", min_length=1)
    """How this source is called in the corpus."""
    config: str | None = None
    """The configuration (subset); null: the only one, or the default."""
    split: str = "train"
    """The split of the data set; that of the corpus is made anew."""
    revision: str | None = Field(default=None, min_length=1)
    """On the hub: branch, tag or commit; null: `main`."""
    data_dir: str | None = None
    """A folder of the data set, such as `data/python`; null: what the data set itself says."""
    data_files: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Globs on the data set's files; null: what the data set itself says."""
    layout: Literal["codeparrot-clean", "the-stack"] | None = None
    """The names of the columns, as these data sets have them."""
    columns: Columns | None = None
    """The names of the columns, one by one."""

    @field_validator("dataset")
    @classmethod
    def _is_place(cls, dataset: str) -> str:
        if not dataset.isprintable() or not (HUB_ID.fullmatch(dataset) or dataset.startswith((".", "/", "~"))):
            raise ValueError("write owner/name for a data set on the hub, or a path that begins with ./, / or ~")
        return dataset

    @model_validator(mode="after")
    def _one_way_to_name_columns(self) -> "HuggingFaceSettings":
        if (self.layout is None) == (self.columns is None):
            raise ValueError("set either layout or columns")
        if self.revision is not None and not self.is_on_the_hub:
            raise ValueError("revision: a folder has none")
        return self

    @property
    def is_on_the_hub(self) -> bool:
        """Whether `dataset` is an id."""
        return HUB_ID.fullmatch(self.dataset) is not None


class HuggingFaceSource:
    """Lists a data set."""

    def __init__(self, settings: HuggingFaceSettings) -> None:
        self.settings = settings
        self.where = f"source {settings.name!r}: data set {settings.dataset}"

    def entries(self) -> Sequence[Entry]:
        """Every row of the split that is wanted."""
        settings = self.settings
        columns = settings.columns or LAYOUTS[settings.layout or ""]
        found = entries_of(settings, columns, self._on_the_hub() if settings.is_on_the_hub else self._in_a_folder())
        if not found:
            wanted = ", ".join(settings.include)
            raise SourceError(f"{self.where} holds no row in split {settings.split!r} that matches {wanted}")
        return found

    def _on_the_hub(self) -> list[DataFile]:
        from huggingface_hub import HfFileSystem

        if os.environ.get("HF_HUB_OFFLINE", "1").upper() in TRUE:
            raise SourceError(f"{self.where} lies on the hub, but HF_HUB_OFFLINE is not 0; set it, or name a folder")
        hub = HfFileSystem()
        files = []
        for url in self._places(self.settings.dataset):
            base, name = self._divided(url, re.escape(f"{HUB}datasets/{self.settings.dataset}@") + "[^/]+")
            try:
                about = hub.info(url)
            except Exception as error:
                raise self._unusable(error) from error
            files.append(DataFile(base, name, int(about["size"]), str(about["blob_id"])))
        return files

    def _in_a_folder(self) -> list[DataFile]:
        try:
            folder = Path(self.settings.dataset).expanduser().resolve(strict=True)
        except (OSError, RuntimeError) as error:  # no such user's home
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"{self.where} cannot be read: {reason}") from error
        storage = open_storage(folder.as_uri())
        files = []
        for path in self._places(str(folder)):
            _, name = self._divided(os.path.normpath(path), re.escape(str(folder)))
            try:
                size = Path(path).stat().st_size
            except OSError as error:
                raise self._unusable(error) from error
            files.append(DataFile(storage.uri, name, size, storage.tag(name) if size else ""))
        return files

    def _places(self, dataset: str) -> list[str]:
        """The files of the split, sorted, as `datasets` names them."""
        import datasets
        from huggingface_hub.utils.tqdm import disable_progress_bars

        settings = self.settings
        datasets.disable_progress_bars()
        disable_progress_bars()
        try:
            with tempfile.TemporaryDirectory() as cache:
                builder = datasets.load_dataset_builder(
                    dataset,
                    settings.config,
                    data_dir=settings.data_dir,
                    data_files=list(settings.data_files) if settings.data_files else None,
                    revision=settings.revision,
                    cache_dir=cache,
                )
        except Exception as error:
            raise self._unusable(error) from error
        splits = {str(split): files for split, files in (builder.config.data_files or {}).items()}
        if settings.split not in splits:
            raise SourceError(f"{self.where} has no split {settings.split!r}; there is: {', '.join(sorted(splits))}")
        return sorted(splits[settings.split])

    def _divided(self, place: str, base: str) -> tuple[str, str]:
        """What the base is, and the name of the file below it."""
        parts = re.fullmatch(f"({base})/(.+)", place)
        if parts is None:
            raise SourceError(f"{self.where} names a file outside of it: {place}")
        if not READABLE.fullmatch(place):
            raise SourceError(f"{self.where}: {parts[2]} is neither Parquet nor JSON lines, by its name")
        return parts[1], parts[2]

    def _unusable(self, error: Exception) -> SourceError:
        return SourceError(f"{self.where} cannot be used: {one_line(error)}")
