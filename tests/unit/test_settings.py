from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from codeparrot.errors import ConfigError
from codeparrot.settings import MAX_SHOWN_VALUE, Settings, validate


class Inner(Settings):
    learning_rate: float = Field(gt=0)
    num_layers: int = Field(default=2, ge=1, le=10)
    fraction: float = Field(default=0.5, lt=1)
    kind: Literal["a", "b"] = "a"

    @model_validator(mode="after")
    def _b_is_small(self) -> "Inner":
        if self.kind == "b" and self.num_layers > 4:
            raise ValueError("kind b has at most 4 layers")
        return self


class Outer(Settings):
    train: Inner
    name: str = "x"
    parts: tuple[Inner, ...] = ()


def problems(values: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        validate(Outer, values, "run.yaml")  # type: ignore[arg-type]
    first, *lines = str(caught.value).splitlines()
    assert first == f"run.yaml: {len(lines)} problem{'s' if len(lines) != 1 else ''}"
    return [line.removeprefix("  ") for line in lines]


class List(Settings):
    parts: tuple[Inner, ...] = Field(min_length=1)


def test_a_list_whose_only_element_is_wrong_is_not_also_called_empty() -> None:
    with pytest.raises(ConfigError) as caught:
        validate(List, {"parts": [{}]}, "run.yaml")
    assert str(caught.value).splitlines() == [
        "run.yaml: 1 problem",
        "  parts.0.learning_rate: required key is missing",
    ]
    with pytest.raises(ConfigError, match="parts: Tuple should have at least 1 item"):
        validate(List, {"parts": []}, "run.yaml")


def test_infinity_is_not_a_number_to_learn_with() -> None:
    with pytest.raises(ConfigError, match="finite number"):
        validate(List, {"parts": [{"learning_rate": float("inf")}]}, "run.yaml")


def test_right_settings_are_built() -> None:
    assert validate(Outer, {"train": {"learning_rate": 0.1}}, "run.yaml").train.learning_rate == 0.1


def test_all_problems_are_reported_at_once_each_with_its_full_path_and_value() -> None:
    values = {"train": {"learning_rate": -1, "num_layers": 11, "kind": "c", "colour": "red"}, "parts": [{}]}
    assert problems(values) == [
        "train.learning_rate: must be > 0, got -1",
        "train.num_layers: must be <= 10, got 11",
        "train.kind: should be 'a' or 'b', got 'c'",
        "train.colour: unknown key",
        "parts.0.learning_rate: required key is missing",
    ]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"learning_rate": 1, "num_layers": 0}, "train.num_layers: must be >= 1, got 0"),
        ({"learning_rate": 1, "fraction": 1.0}, "train.fraction: must be < 1, got 1.0"),
        ({"learning_rate": 1, "kind": "b", "num_layers": 5}, "train: kind b has at most 4 layers"),
    ],
)
def test_a_bound_or_a_rule_between_settings_is_named(values: dict[str, object], problem: str) -> None:
    assert problems({"train": values}) == [problem]


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_a_recipe_that_is_no_mapping_is_one_problem(values: object) -> None:
    (problem,) = problems(values)
    assert problem.startswith("recipe: ")


@given(st.text(min_size=MAX_SHOWN_VALUE, max_size=10_000))
def test_long_values_are_cut(text: str) -> None:
    (problem,) = problems({"train": {"learning_rate": 1, "num_layers": text}})
    shown = problem.partition(", got ")[2]
    assert shown == repr(text)[:MAX_SHOWN_VALUE] + "..."


def test_settings_cannot_be_changed() -> None:
    settings = validate(Outer, {"train": {"learning_rate": 0.1}}, "run.yaml")
    with pytest.raises(ValidationError):
        settings.name = "y"  # type: ignore[misc]


class Flags(Settings):
    size: int | None = None
    share: float = 0.5
    is_on: bool | None = None
    weights: dict[str, int] = {}


class ManyFlags(Settings):
    parts: tuple[Flags, ...] = ()


def test_true_is_no_number() -> None:
    wrong = {"size": True, "share": False, "is_on": True, "weights": {"a": 1, "b": True}}
    with pytest.raises(ConfigError) as caught:
        validate(ManyFlags, {"parts": [{}, wrong]}, "run.yaml")
    assert str(caught.value).splitlines() == [
        "run.yaml: 3 problems",
        "  parts.1.size: should be a number, got True",
        "  parts.1.share: should be a number, got False",
        "  parts.1.weights.b: should be a number, got True",
    ]
    assert validate(Flags, {"size": 1, "is_on": True}, "run.yaml") == Flags(size=1, is_on=True)
    assert validate(Flags, {"size": None, "is_on": False}, "run.yaml").is_on is False
