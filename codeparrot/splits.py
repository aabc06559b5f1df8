"""The split into train and validation, by repository: no repository stands on both sides.

A repository's side depends on (seed, repository) alone, so it stays where it is when the corpus grows. A corpus
with so few repositories that chance leaves the validation split empty gives it the one with the smallest hash.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from codeparrot.decontaminate import DecontaminateSettings
from codeparrot.draws import uniform
from codeparrot.errors import EmptyCorpusError
from codeparrot.filters import FilterSettings, LicenseSettings
from codeparrot.near_dedup import NearDedupSettings
from codeparrot.redact import RedactSettings
from codeparrot.settings import Settings

SPLITS = ("train", "validation")


class CurateSettings(Settings):
    """What is removed, and what is held out."""

    redact: RedactSettings | None = None
    """Replace secrets and addresses by placeholders before anything else sees a document; `{}` takes the defaults."""
    licenses: LicenseSettings
    filters: FilterSettings = FilterSettings()
    decontaminate: DecontaminateSettings | None = None
    """Reject documents that share text with benchmarks."""
    exact_dedup: bool = True
    """Keep one of every set of exact duplicates."""
    near_dedup: NearDedupSettings | None = None
    """Keep one of every set of near duplicates; `{}` takes the defaults."""
    validation_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Expected share of repositories in the validation split."""
    split_by: Literal["repository", "document"] = "repository"
    """`document` is for a corpus of a single repository; its validation loss is too good to be true."""
    num_rejected_samples: int = Field(default=20, ge=0)
    """Rejected documents per reason to show a person, in `rejected.jsonl` and on the data card."""
    num_kept_samples: int = Field(default=20, ge=0)
    """Documents that were kept to show on the data card."""


def validation_units(units: Iterable[str], *, seed: int, fraction: float) -> frozenset[str]:
    """The units (repositories, or documents) that are held out.

    Raises EmptyCorpusError if there are fewer than two, since then one side would be empty.
    """
    places = {unit: uniform(seed, "split", unit) for unit in set(units)}
    if len(places) < 2:
        raise EmptyCorpusError(
            f"{len(places)} repository is left after curation: a validation split of its own needs two; "
            "add code, or set curate.split_by=document"
        )
    chosen = {unit for unit, place in places.items() if place < fraction}
    first, last = min(places, key=places.__getitem__), max(places, key=places.__getitem__)
    return frozenset((chosen | {first}) - {last})
