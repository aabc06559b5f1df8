"""Sums over pieces, by hand and by chance."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.breakdown import Costs, Origins, added, breakdown, by_position, class_of, grouped, joined, piece_costs

LN2 = math.log(2)


def costs(nll: list[float], num_tokens: list[int] | None = None, num_bytes: list[int] | None = None) -> Costs:
    ones = [1] * len(nll)
    return Costs(np.array(nll), np.array(num_tokens or ones), np.array(num_bytes or ones))


def test_classes_are_powers_of_two() -> None:
    assert class_of([1, 2, 3, 4, 5, 8, 9, 1024, 1025]).tolist() == [0, 1, 2, 2, 3, 3, 4, 10, 11]


@given(st.integers(1, 2**40))
def test_a_class_is_the_smallest_power_of_two_that_holds_the_number(number: int) -> None:
    power = int(class_of(number))
    assert number <= 1 << power
    assert power == 0 or number > 1 << (power - 1)


def test_pieces_and_positions_of_two_rows_by_hand() -> None:
    """Row 0: a document of two tokens, and two of another. Row 1: three tokens more of it, and one of padding."""
    nll = np.array([[0.0, 1.0, 2.0, 3.0], [0.0, 10.0, 20.0, 99.0]])
    sizes = np.array([[0, 5, 6, 7], [0, 8, 9, 0]])
    seen = np.array([[0, 1, 1, 1], [0, 1, 1, 1]])
    pieces, positions = piece_costs(
        Costs(nll, seen, sizes), np.array([0, 0, 1]), np.array([0, 2, 0]), np.array([2, 2, 3])
    )
    assert pieces.nll.tolist() == [1.0, 5.0, 30.0]
    assert pieces.num_tokens.tolist() == [1, 2, 2]
    assert pieces.num_bytes.tolist() == [5, 13, 17]
    # One token before it: 1 + 10; two: 2 + 20; three (class of four): 3, and the padding does not count.
    assert positions.nll[:3].tolist() == [11.0, 22.0, 3.0]
    assert positions.num_tokens[:4].tolist() == [2, 2, 1, 0]


@given(st.data())
def test_nothing_is_lost_or_counted_twice(data: st.DataObject) -> None:
    num_rows, width = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 9))
    row, offset, length = [], [], []
    real = np.zeros((num_rows, width), bool)
    for index in range(num_rows):
        used = data.draw(st.integers(1, width))
        cuts = sorted({0, used, *data.draw(st.lists(st.integers(0, used), max_size=3))})
        for begin, end in pairwise(cuts):
            row.append(index)
            offset.append(begin)
            length.append(end - begin)
        real[index, :used] = True
    real[:, 0] = False
    nll = np.arange(num_rows * width, dtype=float).reshape(num_rows, width)
    nll[:, 0] = 0
    seen = np.ones((num_rows, width), np.int64)
    seen[:, 0] = 0
    pieces, positions = piece_costs(Costs(nll, seen, 3 * seen), np.array(row), np.array(offset), np.array(length))
    for found in (pieces, positions):
        assert found.nll.sum() == nll[real].sum()
        assert found.num_tokens.sum() == real.sum()
        assert found.num_bytes.sum() == 3 * real.sum()


def test_rows_of_a_batch_may_be_computed_apart() -> None:
    parts = [costs([1.5, 2.5], [1, 2]), costs([4.0], [3])]
    assert joined(parts).nll.tolist() == [1.5, 2.5, 4.0]
    assert added([parts[0], parts[0]]).num_tokens.tolist() == [2, 4]


def test_groups_may_be_empty() -> None:
    found = grouped(costs([1.0, 2.0, 4.0]), np.array([2, 0, 2]), 4)
    assert found.nll.tolist() == [2.0, 0.0, 5.0, 0.0]
    assert found.num_tokens.tolist() == [1, 0, 2, 0]


ORIGINS = Origins(
    repository=["a", "a", "b", "a"],
    license=["MIT", "MIT", None, "MIT"],
    document=[0, 0, 1, 2],
    document_tokens=np.array([3, 3, 9, 2]),
)


def test_a_breakdown_by_hand() -> None:
    pieces = costs([LN2, 2 * LN2, 8 * LN2, LN2], [1, 1, 2, 2], [1, 2, 4, 1])
    found = breakdown(pieces, by_position(costs([1.0, 2.0]), np.array([1, 3])), ORIGINS, seed=0)
    first, second = found["by_repository"]
    assert (first["name"], second["name"]) == ("a", "b")  # as many bytes: by name
    assert first["num_documents"] == 2
    assert first["loss"] == pytest.approx(4 * LN2 / 4)
    assert first["bits_per_byte"] == pytest.approx(1.0)
    assert second["bits_per_byte"] == pytest.approx(2.0)
    assert [row["name"] for row in found["by_license"]] == ["MIT", "unknown"]
    assert [(row["at_most"], row["num_documents"]) for row in found["by_document_length"]] == [(2, 1), (4, 1), (16, 1)]
    assert [(row["at_most"], row["loss"]) for row in found["by_position"]] == [(1, 1.0), (4, 2.0)]
    interval = found["intervals"]["bits_per_byte"]
    assert found["intervals"]["unit"] == "repository"
    assert (interval["low"], interval["high"]) == pytest.approx((1.0, 2.0))  # both of one repository: one in two draws


def test_of_a_single_repository_documents_take_its_place() -> None:
    origins = Origins(["a"] * 3, ["MIT"] * 3, [0, 1, 2], np.array([3, 3, 9]))
    found = breakdown(costs([1.0, 2.0, 3.0]), by_position(costs([1.0]), np.array([1])), origins, seed=0)
    assert found["intervals"]["unit"] == "document"
    assert found["intervals"]["loss"]["num_units"] == 3


def test_tokens_that_stand_for_no_text_have_no_bits_per_byte() -> None:
    found = breakdown(
        Costs(np.array([1.0, 2.0]), np.array([1, 1]), np.array([0, 4])),
        by_position(costs([1.0]), np.array([1])),
        Origins(["a", "b"], ["MIT", "MIT"], [0, 1], np.array([1, 2])),
        seed=0,
    )
    assert [row["bits_per_byte"] for row in found["by_repository"]] == [pytest.approx(2 / LN2 / 4), None]
    assert found["intervals"]["bits_per_byte"] is None  # of the one repository with text nothing can be said
