"""What a model's predictions cost, by where the text comes from: repository, licence, length of document, context.

Predictions come as sums over pieces of documents, in corpus order, and are added up in that order in float64: the same
figures whoever has computed which piece. Lengths and positions fall into classes by powers of two.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from codeparrot.bootstrap import ratio_interval
from codeparrot.metrics import measures

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

NUM_CLASSES = 40
"""Powers of two that a length or a position may reach."""
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Costs:
    """Sums over pieces of text, or over classes: arrays of one shape."""

    nll: Float64
    """Negative log-likelihood, in nats."""
    num_tokens: Int64
    """That were predicted."""
    num_bytes: Int64
    """Of the text that these stand for."""


@dataclass(frozen=True)
class Origins:
    """Where pieces come from: all of shape (pieces,)."""

    repository: Sequence[str]
    license: Sequence[str | None]
    document: Sequence[Any]
    """What tells documents apart."""
    document_tokens: Int64
    """The whole document's."""


def joined(parts: Sequence[Costs]) -> Costs:
    """One after the other."""
    names = ("nll", "num_tokens", "num_bytes")
    return Costs(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def added(parts: Sequence[Costs]) -> Costs:
    """Element by element, in this order."""
    names = ("nll", "num_tokens", "num_bytes")
    return Costs(*(np.sum([getattr(part, name) for part in parts], axis=0) for name in names))


def class_of(numbers: npt.ArrayLike) -> Int64:
    """The power of two that a number does not exceed, as its exponent: 1 -> 0, 2 -> 1, 3 and 4 -> 2."""
    return np.frexp(np.asarray(numbers, np.float64) - 1)[1].astype(np.int64)  # exact below 2**53


def grouped(costs: Costs, groups: Int64, num_groups: int) -> Costs:
    """Sums by group. `groups`: the group of each element."""
    whole = (np.bincount(groups, values, num_groups) for values in (costs.num_tokens, costs.num_bytes))
    num_tokens, num_bytes = (np.rint(values).astype(np.int64) for values in whole)
    nll = np.bincount(groups, costs.nll, num_groups).astype(np.float64)  # integers if there are none
    return Costs(nll, num_tokens, num_bytes)


def by_position(costs: Costs, positions: Int64) -> Costs:
    """Costs of single tokens by the class of the number of tokens before them: shape (NUM_CLASSES,)."""
    return grouped(costs, class_of(positions), NUM_CLASSES)


def piece_costs(costs: Costs, row: Int64, offset: Int64, length: Int64) -> tuple[Costs, Costs]:
    """(by piece, by position) of rows of single tokens, which have shape (B, T); a row's first token costs nothing.

    Pieces are those of documents, by row and offset; what belongs to none is padding, and counts nowhere.
    """
    width = costs.nll.shape[1]
    borders = np.stack([row * width + offset, row * width + offset + length], axis=1).flatten()

    def over(values: Any) -> Any:
        return np.add.reduceat(np.append(values.flatten(), 0), borders)[::2] if len(row) else values.flatten()[:0]

    flat = np.zeros(costs.nll.size, bool)
    for begin, end in borders.reshape(-1, 2).tolist():
        flat[begin:end] = True
    flat[::width] = False
    one_by_one = Costs(costs.nll.flatten()[flat], costs.num_tokens.flatten()[flat], costs.num_bytes.flatten()[flat])
    positions = np.flatnonzero(flat) % width
    return Costs(over(costs.nll), over(costs.num_tokens), over(costs.num_bytes)), by_position(one_by_one, positions)


def breakdown(costs: Costs, positions: Costs, origins: Origins, seed: int) -> dict[str, Any]:
    """All break-downs, and how far the whole would move with other repositories.

    `costs`: of pieces; `positions`: by class (`by_position`). Of a corpus of one repository, documents take its place.
    """
    licenses = [each or UNKNOWN for each in origins.license]
    lengths = class_of(origins.document_tokens)
    names, unit = origins.repository, "repository"
    if len(set(names)) < 2:
        names, unit = origins.document, "document"
    of_unit = grouped(costs, *_numbered(names)[:2])
    told = of_unit.num_bytes > 0
    return {
        "by_repository": _by_size(costs, origins.repository, origins.document),
        "by_license": _by_size(costs, licenses, origins.document),
        "by_document_length": [
            {"at_most": 1 << power, "num_documents": len({*_chosen(origins.document, lengths == power)}), **row}
            for power, row in _rows(grouped(costs, lengths, NUM_CLASSES))
        ],
        "by_position": [{"at_most": 1 << power, **row} for power, row in _rows(positions)],
        "intervals": {
            "unit": unit,
            "loss": _interval(of_unit.nll[told], of_unit.num_tokens[told], seed),
            "bits_per_byte": _interval(of_unit.nll[told] / math.log(2), of_unit.num_bytes[told], seed),
        },
    }


def _interval(above: Float64, below: Int64, seed: int) -> dict[str, Any] | None:
    found = ratio_interval(above, below, seed)
    return asdict(found) if found else None


def _numbered(names: Sequence[Any]) -> tuple[Int64, int, list[Any]]:
    """(the number of each name, how many there are, them by number)."""
    numbers: dict[Any, int] = {}
    found = np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)
    return found, len(numbers), list(numbers)


def _by_size(costs: Costs, names: Sequence[str], documents: Sequence[Any]) -> list[dict[str, Any]]:
    """A row for each name, that with most text first."""
    groups, num_groups, known = _numbered(names)
    counts: dict[str, set[Any]] = {}
    for name, document in zip(names, documents, strict=True):
        counts.setdefault(name, set()).add(document)
    rows = [
        {"name": known[number], "num_documents": len(counts[known[number]]), **row}
        for number, row in _rows(grouped(costs, groups, num_groups))
    ]
    return sorted(rows, key=lambda row: (-row["num_bytes"], row["name"]))


def _rows(groups: Costs) -> list[tuple[int, dict[str, Any]]]:
    """The measures of every group of which a token was predicted."""
    found = []
    for number in np.flatnonzero(groups.num_tokens).tolist():
        nll, num_tokens, num_bytes = (
            values[number].item() for values in (groups.nll, groups.num_tokens, groups.num_bytes)
        )
        found.append((number, asdict(measures(nll, num_tokens, num_bytes))))
    return found


def _chosen(values: Sequence[Any], which: npt.NDArray[np.bool_]) -> list[Any]:
    return [values[index] for index in np.flatnonzero(which).tolist()]
