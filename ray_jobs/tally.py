"""Counting documents and bytes: kept by licence and repository, rejected by reason."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

Amount = dict[str, Counter[str]]


def _amount() -> Amount:
    return {"num_documents": Counter(), "size_bytes": Counter()}


@dataclass
class Tally:
    """What one shard, or all of them, kept and rejected."""

    by_license: Amount = field(default_factory=_amount)
    by_repository: Amount = field(default_factory=_amount)
    rejected: Amount = field(default_factory=_amount)

    @property
    def num_documents(self) -> int:
        """Documents kept."""
        return self.by_license["num_documents"].total()

    @property
    def size_bytes(self) -> int:
        """Bytes kept."""
        return self.by_license["size_bytes"].total()

    def keep(self, repository: str, license_: str | None, size_bytes: int) -> None:
        """Count a document that stays."""
        for amount, key in ((self.by_license, license_ or "unknown"), (self.by_repository, repository)):
            amount["num_documents"][key] += 1
            amount["size_bytes"][key] += size_bytes

    def reject(self, reason: str, size_bytes: int) -> None:
        """Count one that does not."""
        self.rejected["num_documents"][reason] += 1
        self.rejected["size_bytes"][reason] += size_bytes

    def add(self, other: "Tally") -> None:
        """Add another tally to this one."""
        for mine, theirs in (
            (self.by_license, other.by_license),
            (self.by_repository, other.by_repository),
            (self.rejected, other.rejected),
        ):
            for unit in mine:
                mine[unit].update(theirs[unit])

    def counts(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "num_documents": self.num_documents,
            "size_bytes": self.size_bytes,
            "by_license": _by_key(self.by_license),
            "by_repository": _by_key(self.by_repository),
            "rejected": _by_key(self.rejected),
        }

    def reasons_text(self) -> str:
        """`12 empty, 3 too_large`."""
        reasons = sorted(self.rejected["num_documents"].items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count} {reason}" for reason, count in reasons) or "nothing was rejected"


def _by_key(amount: Amount) -> dict[str, dict[str, int]]:
    return {key: {unit: amount[unit][key] for unit in amount} for key in sorted(amount["num_documents"])}
