"""Files of a data set, wherever they lie: in a folder, in an object store, or on the Hugging Face hub.

They are read in ranges; nothing of them is kept on this machine.
"""

import io
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from codeparrot.sources.json_rows import JSON_LINES
from codeparrot.sources.parquet_rows import PARQUET
from codeparrot.sources.rows import RowFormat, one_line
from codeparrot.storage import LocalStorage, Storage, open_storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HUB = "hf://"


class UnreachableFile(Exception):
    """A file is gone, is another one now, or its place does not answer; the message says so, on one line."""


@dataclass(frozen=True)
class DataFile:
    """One file."""

    base: str
    """URI of the folder or prefix that holds the data set; on the hub `hf://datasets/ID@COMMIT`."""
    name: str
    """Below it, with `/`."""
    size_bytes: int
    stamp: str
    """Another one if it holds something else."""

    @property
    def url(self) -> str:
        """Where it is."""
        return f"{self.base}/{self.name}"

    @property
    def format(self) -> RowFormat:
        """What its name says."""
        return PARQUET if self.name.lower().endswith(".parquet") else JSON_LINES

    def open(self) -> io.RawIOBase:
        """The file, to be read anywhere in it.

        Raises UnreachableFile or StorageError, and so does the file: its OSErrors are those of who unpacks it.
        """
        if self.base.startswith(HUB):  # a commit never changes
            return Ranges(self.size_bytes, _on_the_hub(self.url))
        storage = open_storage(self.base)
        if not self._is_in(storage):
            raise UnreachableFile("has changed since it was listed; run again")
        return Ranges(self.size_bytes, lambda start, stop: storage.read(self.name, start, stop))

    def _is_in(self, storage: Storage) -> bool:
        if not isinstance(storage, LocalStorage):
            return storage.tag(self.name) == self.stamp
        try:
            status = (storage.root / self.name).stat()
        except OSError as error:
            raise UnreachableFile(f"cannot be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):  # a pipe would be waited for
            raise UnreachableFile("is not a file")
        return status.st_size == self.size_bytes


class Ranges(io.RawIOBase):
    """A file of known size whose bytes come from a function of start and stop."""

    def __init__(self, size_bytes: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size_bytes = size_bytes
        self._fetch = fetch
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, begin + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size_bytes if size is None or size < 0 else min(self._size_bytes, self._position + size)
        if stop <= self._position:
            return b""
        data = self._fetch(self._position, stop)
        if len(data) != stop - self._position:
            raise UnreachableFile("has become shorter since it was listed; run again")
        self._position = stop
        return data

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)


def _on_the_hub(url: str) -> Callable[[int, int], bytes]:
    from huggingface_hub import HfFileSystem

    with _reached():
        file = HfFileSystem().open(url, "rb", cache_type="none")

    def fetch(start: int, stop: int) -> bytes:
        with _reached():
            file.seek(start)
            return bytes(file.read(stop - start))

    return fetch


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise UnreachableFile(f"cannot be read: {one_line(error)}") from error
