"""The base of every settings class, and the one way a wrong setting is reported.

Each settings class stands beside the code that uses it; `config.py` composes them into a recipe.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    NonNegativeFloat,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from codeparrot.errors import ConfigError

T = TypeVar("T", bound="Settings")

MAX_SHOWN_VALUE = 80

Resources = dict[str, NonNegativeFloat]
"""Ray resources of one worker or task, such as `{CPU: 1}`."""


class Settings(BaseModel):
    """Frozen, closed settings: an unknown key is an error, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Settings that outputs made before them do not name. As long as they have their defaults they are not dumped, so
    such outputs keep their identity."""

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        same = {name for name in self.LATER if getattr(self, name) == fields[name].default}
        return {name: value for name, value in values.items() if name not in same}


def validate(model: type[T], values: Mapping[str, Any], where: str) -> T:
    """Build `model` from plain values.

    Raises ConfigError with all problems at once, one line each, as `train.learning_rate: message, got value`.
    """
    try:
        made = model.model_validate(values)
        problems = [f"{path}: should be a number, got {value}" for path, value in _flags(values, made, "")]
    except ValidationError as error:
        found = error.errors()
        problems = [_problem(problem) for problem in found if not _follows(problem, found)]
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n  ".join([f"{where}: {count}", *problems]))
    return made


def _flags(value: Any, made: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Where true or false was taken for 1 or 0, which is a slip."""
    if isinstance(value, bool) and not isinstance(made, bool):
        yield path, value
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _flags(
                part, made.get(key) if isinstance(made, Mapping) else getattr(made, key), _below(path, key)
            )
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from _flags(part, made[index], _below(path, index))


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _follows(problem: Any, others: Sequence[Any]) -> bool:
    """Whether a problem is there only since an element of the same list has one: it was left out of the list."""
    place = problem["loc"]
    deeper = (other["loc"] for other in others if len(other["loc"]) > len(place))
    return problem["type"] == "too_short" and any(other[: len(place)] == place for other in deeper)


def _problem(problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"]) or "recipe"
    kind, message, value = problem["type"], problem["msg"], problem["input"]
    if kind == "extra_forbidden":
        return f"{path}: unknown key"
    if kind == "missing":
        return f"{path}: required key is missing"
    context = problem.get("ctx", {})
    bounds = {"greater_than": (">", "gt"), "greater_than_equal": (">=", "ge")}
    bounds |= {"less_than": ("<", "lt"), "less_than_equal": ("<=", "le")}
    if kind in bounds:
        sign, key = bounds[kind]
        bound = context[key]
        message = f"must be {sign} {int(bound) if isinstance(bound, float) and bound.is_integer() else bound}"
    message = message.removeprefix("Value error, ").removeprefix("Input ")
    if kind == "value_error" and isinstance(value, Mapping):
        return f"{path}: {message}"
    shown = repr(value)
    shown = shown if len(shown) <= MAX_SHOWN_VALUE else shown[:MAX_SHOWN_VALUE] + "..."
    return f"{path}: {message}, got {shown}"
