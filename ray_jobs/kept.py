"""Results of tasks that outlive the driver: a stage that was killed goes on, and does none of them again.

They lie in the folder of the attempt, beside the files that the tasks have written, and go when its output is
committed (`codeparrot.manifest.Attempt`). They are pickled, since they hold arrays and tables. Reading them makes
arrays, tables and our own dataclasses, and nothing else: who may write to the store can run nothing here.
"""

import io
import pickle
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, is_dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from codeparrot.manifest import RESULTS
from codeparrot.storage import open_storage

if TYPE_CHECKING:
    import pyarrow as pa

NUM_READERS = 16
OWN = ("codeparrot", "ray_jobs")
OTHERS = {
    ("collections", "Counter"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    (__name__, "table_of"),
}
"""What a result is made of beside our own dataclasses."""


@dataclass(frozen=True)
class Kept:
    """Where the results of one attempt lie."""

    uri: str
    folder: str
    """Of the attempt, relative to the base of the store."""

    def write(self, step: str, index: int, result: Any) -> bytes:
        """Keep the result of one task of a step; returns it as it is stored, which `pickle.loads` takes too."""
        stored = dump(result)
        open_storage(self.uri).write(f"{self._prefix(step)}{index:07d}", stored)
        return stored

    def read(self, step: str) -> dict[int, Any]:
        """The results of a step that are there, by the index of the task."""
        storage, prefix = open_storage(self.uri), self._prefix(step)
        paths = [path for path, _ in storage.list(prefix)]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = zip(paths, readers.map(storage.read, paths), strict=True)
            return {int(path.removeprefix(prefix)): load(data) for path, data in found}

    def _prefix(self, step: str) -> str:
        return f"{self.folder}/{RESULTS}/{re.sub('[^a-z_]+', '-', step)}/"


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        import pyarrow as pa

        return (table_of, (_bytes_of(value),)) if isinstance(value, pa.Table) else NotImplemented


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in OTHERS:
            return super().find_class(module, name)
        if module.split(".")[0] in OWN:
            found = getattr(import_module(module), name, None)
            if isinstance(found, type) and is_dataclass(found):
                return found
        raise pickle.UnpicklingError(f"a stored result names {module}.{name}, which no result is made of")


def dump(result: Any) -> bytes:
    """A result as it is stored."""
    data = io.BytesIO()
    _Pickler(data).dump(result)
    return data.getvalue()


def load(data: bytes) -> Any:
    """A stored result. Raises UnpicklingError if it names anything that no result is made of."""
    return _Unpickler(io.BytesIO(data)).load()


def _bytes_of(table: "pa.Table") -> bytes:
    import pyarrow as pa

    with pa.BufferOutputStream() as out, pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table)
    data: bytes = out.getvalue().to_pybytes()
    return data


def table_of(data: bytes) -> "pa.Table":
    """A table from the stream that it was stored as."""
    import pyarrow as pa

    return pa.ipc.open_stream(data).read_all()
