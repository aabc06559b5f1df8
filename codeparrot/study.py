"""A study: many runs of one recipe, each with other settings of it.

    study_name: learning-rate
    recipe: tiny.yaml              # beside the study
    set: {train.max_steps: 200}    # for all runs
    axes:
      - name: rate                 # one setting, several values
        key: train.learning_rate
        values: [5e-4, 1e-3, 2e-3]
      - name: size                 # several settings at a time, by a label
        points:
          s: {model.n_layer: 2, model.n_embd: 128}
          m: {model.n_layer: 4, model.n_embd: 192}

There is a run for every combination, and its name is made of the study's and of the labels. All lie in the recipe's
store. What the axes do not touch is made once: without axes in `collect`, `curate`, `tokenizer`, `pack` or `seed`, all
runs train on the same rows. Runs that share their rows stand one after another: a store has one corpus at a time.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, field_validator, model_validator

from codeparrot.config import Recipe, load_values, override, set_value
from codeparrot.errors import ConfigError
from codeparrot.manifest import canonical
from codeparrot.settings import Settings, validate
from codeparrot.storage import sha256_hex

NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
Overrides = dict[str, Any]
"""Values by the path of their key, such as `train.max_steps`."""
SHAPE_ROWS = ("seed", "collect", "curate", "tokenizer", "pack")
"""Parts of a recipe that its rows depend on."""
SHAPE_FIGURES = (*SHAPE_ROWS, "model", "evaluate")
RESERVED = ("run_name", "storage")
"""Set by the study itself, or the same for all."""


class Axis(Settings):
    """What differs between runs in one respect."""

    name: Annotated[str, Field(pattern=NAME)]
    key: str | None = None
    """The path of one setting, with `values`."""
    values: tuple[Any, ...] | None = None
    points: dict[Annotated[str, Field(pattern=NAME)], Overrides] | None = None
    """Settings by a label: of several keys at a time."""

    @model_validator(mode="after")
    def _one_form(self) -> "Axis":
        if (self.key is None) != (self.values is None) or (self.key is None) == (self.points is None):
            raise ValueError("give either `key` and `values`, or `points`")
        found = self.levels
        if len(found) < 2:
            raise ValueError(f"needs two different values or more, got {', '.join(found) or 'none'}")
        for path in {path for overrides in found.values() for path in overrides}:
            if path.split(".")[0] in RESERVED:
                raise ValueError(f"{path} is the same for all runs of a study")
        return self

    @property
    def levels(self) -> dict[str, Overrides]:
        """The settings of each value, by its label."""
        if self.points is not None:
            return self.points
        return {label_of(value): {str(self.key): value} for value in self.values or ()}


class ScalingSettings(Settings):
    """That a law of size and tokens is fitted to the runs."""

    held_out: dict[str, str] = Field(min_length=1)
    """A label of some axes: runs with all of them are left out of the fit, and predicted."""
    budgets: tuple[PositiveFloat, ...] = ()
    """Floating-point operations for which the best size is asked."""
    tolerance: float = Field(default=0.02, gt=0, lt=1)
    """How far from its true loss a prediction may lie, as a share of it."""

    @field_validator("held_out", mode="before")
    @classmethod
    def _labels(cls, held_out: Any) -> Any:
        """Values may stand for their labels: YAML reads 1e-3 as a number."""
        if not isinstance(held_out, dict):
            return held_out
        return {name: label if isinstance(label, str) else label_of(label) for name, label in held_out.items()}


class StudySettings(Settings):
    """The whole study."""

    study_name: Annotated[str, Field(pattern=NAME, max_length=20)]
    recipe: str
    """A file; a relative path starts at the study's folder."""
    set: Overrides = {}
    """Settings of all runs."""
    axes: tuple[Axis, ...] = Field(min_length=1)
    scaling: ScalingSettings | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> "StudySettings":
        names = [axis.name for axis in self.axes]
        if len({*names}) < len(names):
            raise ValueError(f"two axes share a name: {', '.join(names)}")
        keys = Counter(key for axis in self.axes for key in {key for level in axis.levels.values() for key in level})
        twice = [key for key, times in keys.items() if times > 1]
        if twice:
            raise ValueError(f"two axes set {', '.join(twice)}")
        levels = {axis.name: axis.levels for axis in self.axes}
        for name, label in (self.scaling.held_out if self.scaling else {}).items():
            if label not in levels.get(name, {}):
                raise ValueError(f"scaling.held_out: no axis {name!r} has {label!r}")
        return self


@dataclass(frozen=True)
class Planned:
    """One run of a study."""

    labels: Mapping[str, str]
    """By axis."""
    values: Mapping[str, float]
    """By axis, where these are numbers."""
    recipe: Recipe

    @property
    def rows(self) -> str:
        """Equal for runs that train on the same rows."""
        return sha256_hex(canonical(self.recipe.model_dump(mode="json", include=set(SHAPE_ROWS))))

    @property
    def shape(self) -> dict[str, Any]:
        """The settings that its figures depend on."""
        chosen = self.recipe.model_dump(mode="json", include=set(SHAPE_FIGURES))
        return {**chosen, "train": self.recipe.train.identity()}


@dataclass(frozen=True)
class Study:
    """A study and its runs, those that share their rows one after another."""

    settings: StudySettings
    planned: Sequence[Planned]

    @property
    def uri(self) -> str:
        """Of the store of all its runs."""
        return self.planned[0].recipe.storage.uri

    def is_held_out(self, planned: Planned) -> bool:
        """Whether a run is left out of the fit."""
        held_out = self.settings.scaling.held_out if self.settings.scaling else {}
        return bool(held_out) and all(planned.labels[name] == label for name, label in held_out.items())


def label_of(value: Any) -> str:
    """A value as part of a run's name: 0.0005 is 5e-4."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    if isinstance(value, float) and 0 < abs(value) < 0.1:
        digits, _, exponent = f"{value:e}".partition("e")
        text = f"{float(digits):g}e{int(exponent)}"
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study and plan its runs; `overrides` go to the recipe. Raises ConfigError."""
    settings = validate(StudySettings, load_values(path, "study"), str(path))
    base_path = Path(path).parent / settings.recipe
    base = load_values(base_path, "recipe")
    for key, value in settings.set.items():
        set_value(base, key.split("."), value, f"{path}: set")
    override(base, overrides)
    planned = [_planned(settings, base, chosen, str(path)) for chosen in _combinations(settings.axes)]
    _require_distinct(planned, str(path))
    order = {rows: place for place, rows in reversed([*enumerate(each.rows for each in planned)])}
    return Study(settings, sorted(planned, key=lambda each: order[each.rows]))


Chosen = Sequence[tuple[Axis, str, Overrides]]


def _combinations(axes: Sequence[Axis]) -> Iterator[Chosen]:
    return itertools.product(*([(axis, *level) for level in axis.levels.items()] for axis in axes))


def _planned(settings: StudySettings, base: Mapping[str, Any], chosen: Chosen, where: str) -> Planned:
    values = deepcopy(dict(base))
    labels = {axis.name: label for axis, label, _ in chosen}
    values["run_name"] = "-".join([settings.study_name, *labels.values()])
    for _, _, overrides in chosen:
        for key, value in overrides.items():
            set_value(values, key.split("."), value, where)
    recipe = validate(Recipe, values, f"{where}, {values['run_name']}")
    numbers = {
        axis.name: float(value)
        for axis, _, overrides in chosen
        for value in overrides.values()
        if axis.key is not None and not isinstance(value, bool) and isinstance(value, int | float)
    }
    return Planned(labels, numbers, recipe)


def _require_distinct(planned: Sequence[Planned], where: str) -> None:
    names: dict[str, str] = {}
    shapes: dict[str, str] = {}
    for each in planned:
        name, shape = each.recipe.run_name, sha256_hex(canonical(each.shape))
        if name in names:
            raise ConfigError(f"{where}: two runs have the name {name}; give the values other labels, by `points`")
        if shape in shapes:
            raise ConfigError(f"{where}: {shapes[shape]} and {name} have the same settings")
        names[name], shapes[shape] = shape, name
