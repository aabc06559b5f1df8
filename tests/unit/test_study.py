"""Which runs a study asks for, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from codeparrot.errors import ConfigError
from codeparrot.study import Study, label_of, load_study

TINY = Path("recipes/tiny.yaml").absolute()
RATE = {"name": "rate", "key": "train.learning_rate", "values": [0.0005, 0.001]}
SIZE = {"name": "size", "points": {"s": {"model.n_embd": 64}, "m": {"model.n_embd": 128, "model.n_layer": 3}}}
VOCABULARY = {"name": "vocabulary", "key": "tokenizer.vocab_size", "values": [1024, 2048]}


def study(folder: Path, *axes: Any, overrides: tuple[str, ...] = (), **others: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(
        yaml.safe_dump({"study_name": "mine", "recipe": str(TINY), "axes": list(axes), **others}, sort_keys=False)
    )
    return load_study(path, overrides)


def refusal(folder: Path, *axes: Any, **others: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        study(folder, *axes, **others)
    return str(caught.value).replace(str(folder), "")


def test_there_is_a_run_for_every_combination(tmp_path: Path) -> None:
    planned = study(tmp_path, SIZE, RATE, set={"train.max_steps": 7}, overrides=("seed=3",)).planned
    assert [each.recipe.run_name for each in planned] == [
        *("mine-s-5e-4", "mine-s-1e-3", "mine-m-5e-4", "mine-m-1e-3"),
    ]
    assert [each.recipe.model.n_layer for each in planned] == [4, 4, 3, 3]
    assert {each.recipe.train.max_steps for each in planned} == {7}
    assert {each.recipe.seed for each in planned} == {3}
    assert planned[1].labels == {"size": "s", "rate": "1e-3"}
    assert planned[1].values == {"rate": 0.001}


def test_runs_that_share_their_rows_stand_together(tmp_path: Path) -> None:
    planned = study(tmp_path, RATE, VOCABULARY).planned
    assert [each.labels["vocabulary"] for each in planned] == ["1024", "1024", "2048", "2048"]
    assert len({each.rows for each in planned}) == 2
    assert len({each.rows for each in study(tmp_path, RATE, SIZE).planned}) == 1


def test_what_changes_no_figure_is_no_part_of_a_runs_shape(tmp_path: Path) -> None:
    one, other = (study(tmp_path, RATE, set=values).planned[0] for values in ({}, {"train.log_every_steps": 3}))
    assert one.shape == other.shape
    assert one.shape != study(tmp_path, RATE, set={"train.max_steps": 9}).planned[0].shape


def test_held_out_runs_have_all_labels_that_are_named(tmp_path: Path) -> None:
    found = study(tmp_path, SIZE, RATE, scaling={"held_out": {"size": "m"}})
    assert [found.is_held_out(each) for each in found.planned] == [False, False, True, True]
    found = study(tmp_path, SIZE, RATE, scaling={"held_out": {"size": "m", "rate": "1e-3"}})
    assert [found.is_held_out(each) for each in found.planned] == [False, False, False, True]
    assert not any(map(study(tmp_path, SIZE).is_held_out, study(tmp_path, SIZE).planned))


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (5e-4, "5e-4"),
        (2.5e-3, "2-5e-3"),
        (0.25, "0-25"),
        (8192, "8192"),
        ("WSD", "wsd"),
        (True, "true"),
        (-0.05, "5e-2"),
    ],
)
def test_values_become_parts_of_names(value: Any, label: str) -> None:
    assert label_of(value) == label


@pytest.mark.parametrize(
    ("axes", "others", "message"),
    [
        ([], {}, "axes: Tuple should have at least 1 item"),
        ([{**RATE, "values": [1e-3]}], {}, "needs two different values or more, got 1e-3"),
        ([{**RATE, "points": {"a": {}, "b": {}}}], {}, "give either `key` and `values`, or `points`"),
        ([{"name": "rate"}], {}, "give either `key` and `values`, or `points`"),
        ([RATE, {**RATE, "name": "again"}], {}, "two axes set train.learning_rate"),
        ([RATE, {**SIZE, "name": "rate"}], {}, "two axes share a name: rate, rate"),
        ([{"name": "x", "key": "run_name", "values": ["a", "b"]}], {}, "run_name is the same for all runs of a study"),
        ([RATE], {"scaling": {"held_out": {"rate": "7"}}}, "scaling.held_out: no axis 'rate' has '7'"),
        ([RATE], {"scaling": {"held_out": {"size": "m"}}}, "scaling.held_out: no axis 'size' has 'm'"),
        ([RATE], {"colour": "red"}, "colour: unknown key"),
        ([{**RATE, "values": [-1, 2]}], {}, "mine-1: 1 problem\n  train.learning_rate: must be > 0, got -1"),
        ([{**RATE, "key": "train.lerning_rate"}], {}, "train.lerning_rate: unknown key"),
        ([{**RATE, "key": "seed.inner"}], {}, "seed is a value, not a mapping"),
        (
            [{"name": "log", "key": "train.log_every_steps", "values": [1, 2]}],
            {},
            "mine-1 and mine-2 have the same settings",
        ),
        ([RATE], {"set": {"collect.sources.0": 1}}, "set: collect.sources is a list; set it as a whole"),
        ([RATE], {"recipe": "absent.yaml"}, "cannot read the recipe /absent.yaml: No such file or directory"),
    ],
)
def test_a_wrong_study_is_one_message(axes: list[Any], others: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path, *axes, **others)


def test_two_values_with_one_label_are_refused(tmp_path: Path) -> None:
    points = {"a-b": {"train.learning_rate": 1e-3}, "a": {"train.learning_rate": 2e-3}}
    others = {"c": {"train.max_steps": 5}, "b-c": {"train.max_steps": 6}}
    axes = ({"name": "x", "points": points}, {"name": "y", "points": others})
    assert "two runs have the name mine-a-b-c" in refusal(tmp_path, *axes)
