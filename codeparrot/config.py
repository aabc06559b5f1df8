"""The recipe: one YAML file that describes a whole run, composed of the settings of its parts."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import yaml
from pydantic import Field, model_validator

from codeparrot.completion_plan import ServeSettings
from codeparrot.errors import ConfigError
from codeparrot.evaluate import EvaluateSettings
from codeparrot.generate import GenerateSettings
from codeparrot.humaneval_samples import HumanEvalSettings
from codeparrot.model import ModelSettings
from codeparrot.objectives import CausalSettings, ObjectiveSettings, fills_holes, require_holes
from codeparrot.packing import PackSettings
from codeparrot.settings import Settings, validate
from codeparrot.sources import CollectSettings
from codeparrot.splits import CurateSettings
from codeparrot.storage import StorageSettings
from codeparrot.tokenizer import TokenizerSettings
from codeparrot.training_job import TrainSettings

MAX_NAME_LENGTH = 40  # a RayJob's name, made from it, may have 47 characters


OF_OBJECTIVE = {"masked": "modernbert", "span": "t5"}
"""The architecture that an objective needs; all others, a decoder."""


class Recipe(Settings):
    """A whole run."""

    LATER: ClassVar[frozenset[str]] = frozenset({"objective"})

    run_name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=MAX_NAME_LENGTH)]
    """Lower-case letters, digits and hyphens: it becomes part of paths and of Kubernetes names."""
    seed: int = Field(default=0, ge=0)
    """Keys every random choice of the run."""
    storage: StorageSettings
    collect: CollectSettings
    curate: CurateSettings
    tokenizer: TokenizerSettings
    objective: ObjectiveSettings = CausalSettings()
    """What the model learns to do: `{kind: causal}`, `fim`, `masked` or `span`."""
    pack: PackSettings
    model: ModelSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    generate: GenerateSettings
    humaneval: HumanEvalSettings | None = None
    """Null: the pipeline leaves it out."""
    serve: ServeSettings = ServeSettings()

    def prefix_of(self, noun: str) -> str:
        """Where a noun of the flow lies, relative to the base of the storage."""
        run = f"runs/{self.run_name}"
        of_a_run = {noun: f"{run}/{noun}" for noun in ("evaluation", "completions", "humaneval", "report")}
        return {"run": run, **of_a_run}.get(noun, noun)

    @model_validator(mode="after")
    def _fits_together(self) -> "Recipe":
        if self.generate.max_new_tokens >= self.pack.max_seq_len:
            raise ValueError(
                f"generate.max_new_tokens ({self.generate.max_new_tokens}) must be less than pack.max_seq_len "
                f"({self.pack.max_seq_len}): the model sees no more"
            )
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> "Recipe":
        kind, architecture = self.objective.kind, self.model.architecture
        wanted = OF_OBJECTIVE.get(kind, "gpt2" if architecture in OF_OBJECTIVE.values() else architecture)
        if architecture != wanted:
            raise ValueError(
                f"model.architecture {architecture} cannot be trained with objective.kind {kind}: set it to {wanted}"
            )
        if fills_holes(self.objective):
            for name, part in {"evaluate.tasks": self.evaluate.tasks, "humaneval": self.humaneval}.items():
                if part is not None:
                    raise ValueError(f"{name} is for models that go on with a text: set it to null with {kind}")
        for prompt in self.generate.prompts:
            if not isinstance(prompt, str) and kind != "fim":
                raise ValueError(f"generate.prompts: a suffix is for objective.kind fim, not for {kind}")
            if isinstance(prompt, str):
                require_holes(self.objective, prompt)
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides, whose values are YAML.

    Raises ConfigError with every problem at once.
    """
    values = load_values(path, "recipe")
    override(values, overrides)
    return validate(Recipe, values, str(path))


def load_values(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError."""
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the {what} {path}: {reason}") from error
    values = _yaml(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a {what} is a mapping of keys to values, got {type(values).__name__}")
    return values


def override(values: dict[str, Any], overrides: Sequence[str]) -> None:
    """Apply `key.path=value` to plain values. Raises ConfigError."""
    for each in overrides:
        key, equals, value = each.partition("=")
        if not equals or not all(key.split(".")):
            raise ConfigError(f"--set {each}: write key.path=value, for example --set train.max_steps=100")
        set_value(values, key.split("."), _yaml(value, f"--set {each}"), f"--set {each}")


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice and reads `5e-4` as the number it is."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def _number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str | float:
    text = str(loader.construct_scalar(node))
    if node.style is None and text[:1] in "+-.0123456789" and "e" in text.lower():
        try:
            value = float(text)
        except ValueError:
            return text
        return value if math.isfinite(value) else text
    return text


_Loader.add_constructor("tag:yaml.org,2002:str", _number)


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, TypeError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"{where}: not valid YAML: {' '.join(str(error).split())}") from error


def set_value(values: dict[str, Any], path: Sequence[str], value: Any, where: str) -> None:
    """Put a value at a path of keys. Raises ConfigError, which begins with `where`, if something else is in its way."""
    for index, key in enumerate(path[:-1]):
        inner = values.setdefault(key, {})
        if isinstance(inner, list):
            raise ConfigError(f"{where}: {'.'.join(path[: index + 1])} is a list; set it as a whole")
        if not isinstance(inner, dict):
            raise ConfigError(f"{where}: {'.'.join(path[: index + 1])} is a value, not a mapping")
        values = inner
    values[path[-1]] = value


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: reading it gives the same recipe."""
    values: Mapping[str, Any] = recipe.model_dump(mode="json")
    return str(yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True, width=120))


def recipe_schema() -> str:
    """The JSON schema of a recipe, as it stands in `recipes/schema.json`."""
    return json.dumps(Recipe.model_json_schema(), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    print(recipe_schema(), end="")
