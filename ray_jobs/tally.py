"""Counting documents and bytes: kept by what they are, rejected by reason, redacted by kind."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np

from codeparrot.documents import size_classes

if TYPE_CHECKING:
    import pyarrow as pa

Amount = dict[str, Counter[str]]

UNKNOWN = "unknown"
COLUMNS = ("source", "repository", "license", "language")
"""Of a document; what is kept is counted by each of them, and by size."""


def _amount() -> Amount:
    return {"num_documents": Counter(), "size_bytes": Counter()}


def _count(amount: Amount, keys: "pa.ChunkedArray", sizes: "pa.ChunkedArray") -> None:
    """Count documents by their keys."""
    import pyarrow as pa

    table = pa.table({"key": keys, "size": sizes}).group_by("key").aggregate([("size", "count"), ("size", "sum")])
    for unit, column in (("num_documents", "size_count"), ("size_bytes", "size_sum")):
        found = zip(table["key"].to_pylist(), table[column].to_pylist(), strict=True)
        for key, count in found:
            amount[unit][str(key or UNKNOWN)] += count


@dataclass
class Tally:
    """What one shard, or all of them, kept and rejected."""

    by: dict[str, Amount] = field(default_factory=lambda: {name: _amount() for name in (*COLUMNS, "size")})
    """What is kept."""
    rejected: Amount = field(default_factory=_amount)

    @property
    def num_documents(self) -> int:
        """Documents kept."""
        return self.by["size"]["num_documents"].total()

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self.by["size"]["size_bytes"].total()

    @property
    def repositories(self) -> list[str]:
        """Those that documents were kept from, in order."""
        return sorted(self.by["repository"]["num_documents"])

    def keep(self, documents: "pa.Table") -> None:
        """Count documents that stay."""
        import pyarrow as pa
        import pyarrow.compute as pc

        sizes = documents["size_bytes"]
        for name in COLUMNS:
            _count(self.by[name], documents[name], sizes)
        largest = pc.max(sizes).as_py() or 0
        smaller = [*takewhile(lambda bound: bound < largest, size_classes())]
        classes = np.array([*smaller, next(bound for bound in size_classes() if bound >= largest)])
        _count(self.by["size"], pa.chunked_array([classes[np.searchsorted(classes, sizes.to_numpy())]]), sizes)

    def reject(self, reasons: Iterable[str], sizes: Iterable[int]) -> None:
        """Count documents that do not, by reason, given the bytes of each."""
        for reason, size_bytes in zip(reasons, sizes, strict=True):
            self.rejected["num_documents"][reason] += 1
            self.rejected["size_bytes"][reason] += size_bytes

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        pairs = [(self.by[name], other.by[name]) for name in self.by]
        for mine, theirs in (*pairs, (self.rejected, other.rejected)):
            for unit in mine:
                mine[unit].update(theirs[unit])

    def counts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "num_documents": self.num_documents,
            "size_bytes": self.size_bytes,
            **{f"by_{name}": _by_key(amount) for name, amount in self.by.items()},
            "rejected": _by_key(self.rejected),
        }

    def reasons_text(self) -> str:
        """`12 empty, 3 too_large`."""
        reasons = sorted(self.rejected["num_documents"].items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {reason}" for reason, count in reasons) or "nothing was rejected"


@dataclass
class Redacted:
    """What was redacted in the documents that are kept."""

    num_documents: int = 0
    """With anything redacted."""
    by_kind: dict[str, Counter[str]] = field(default_factory=dict)
    """`num_documents`, and `num_values`: different ones within a document."""

    def count(self, values: Counter[str]) -> None:
        """Count a document, by the number of values of every kind that were redacted in it."""
        self.num_documents += bool(values)
        for kind, num_values in values.items():
            self.by_kind.setdefault(kind, Counter()).update(num_documents=1, num_values=num_values)

    def counts(self) -> dict[str, Any]:
        """For a manifest."""
        by_kind = {kind: dict(self.by_kind[kind]) for kind in sorted(self.by_kind)}
        return {"num_documents": self.num_documents, "by_kind": by_kind}


def _by_key(amount: Amount) -> dict[str, dict[str, int]]:
    return {key: {unit: amount[unit][key] for unit in amount} for key in sorted(amount["num_documents"])}
