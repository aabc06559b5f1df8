"""What a small model can be asked about code that it has not seen: the next line, and the body of a function.

Tasks are cut from curated documents of the validation split, chosen by keyed draws, so that the same corpus and seed
give the same tasks. HumanEval asks for more than a small model can; these tell small models apart.

    line   all of a document before a line  ->  that line
    body   all of a document before the body of a function, its docstring included  ->  that body

Answers are compared as texts: exactly, and by 1 - (edit distance / length of the longer one). Of a completion, what
belongs to the answer is its first line with anything on it, or all lines up to the first that is indented less.
"""

import ast
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from codeparrot.draws import key
from codeparrot.filters import is_python
from codeparrot.settings import Settings

Kind = Literal["line", "body"]

MAX_PROMPT_CHARACTERS = 8192
"""More than a model's context holds; it takes the last of them."""
MIN_LINE = 8
"""Characters of a line that is worth asking for."""
MAX_CHARACTERS = 200_000
"""Of documents; longer ones are data."""


class TaskSettings(Settings):
    """What is asked about the validation split; the answers are also looked for in the training rows."""

    num_lines: NonNegativeInt = 100
    """Documents of which a line is asked for."""
    num_bodies: NonNegativeInt = 100
    """Documents of which the body of a function is asked for."""
    max_new_tokens: PositiveInt = 96
    """Of an answer."""
    max_body_lines: int = Field(default=12, ge=2)
    """Functions with longer bodies are not asked for."""

    @property
    def wanted(self) -> "dict[Kind, int]":
        """How many tasks there shall be, by kind."""
        return {"line": self.num_lines, "body": self.num_bodies}


@dataclass(frozen=True)
class Task:
    """A text to go on from, and how its author did."""

    kind: Kind
    prompt: str
    expected: str
    head: str
    """Of a body: the definition that it belongs to, alone and not indented."""
    indent: str
    """Of a body: how the definition was indented."""
    repository: str
    path: str
    line: int
    """Where the expected text begins, counted from 1."""
    draw: int
    """Tasks with the smallest ones are taken."""


@dataclass(frozen=True)
class Origin:
    """The document that tasks are cut from."""

    id: str
    repository: str
    path: str


def tasks_of(text: str, origin: Origin, settings: TaskSettings, seed: int) -> list[Task]:
    """At most one task of each kind."""
    if len(text) > MAX_CHARACTERS:
        return []
    found = []
    for kind, wanted in settings.wanted.items():
        places = _places(kind, text, settings) if wanted else []
        if places:
            purpose = (f"task {kind}", origin.id)
            place = places[key(seed, *purpose, "place") % len(places)]
            found.append(_task(kind, text, place, origin, key(seed, *purpose)))
    return found


def chosen(tasks: Sequence[Task], settings: TaskSettings) -> list[Task]:
    """As many as are wanted of each kind, by their draws."""
    return [
        task
        for kind, number in settings.wanted.items()
        for task in sorted((task for task in tasks if task.kind == kind), key=lambda task: task.draw)[:number]
    ]


@dataclass(frozen=True)
class Place:
    """Lines `first` to `stop` (counted from 0) are asked for."""

    first: int
    stop: int
    head: str = ""
    indent: str = ""


def _places(kind: Kind, text: str, settings: TaskSettings) -> list[Place]:
    return line_places(text) if kind == "line" else body_places(text, settings.max_body_lines)


def line_places(text: str) -> list[Place]:
    """Lines worth asking for: not the first, with code on them, and more than a few characters."""
    return [
        Place(index, index + 1)
        for index, line in enumerate(text.split("\n"))
        if index and len(line.strip()) >= MIN_LINE and not line.lstrip().startswith("#")
    ]


def body_places(text: str, max_lines: int) -> list[Place]:
    """Bodies of functions, of at least two lines, after their docstrings; none if Python cannot parse the text."""
    tree = _parsed(text)
    lines = text.split("\n")
    found = []
    for function in ast.walk(tree) if tree else ():
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = function.body[ast.get_docstring(function, clean=False) is not None :]
        if not body:
            continue
        start, first, stop = _first_line(function), _first_line(body[0]), body[-1].end_lineno or 0
        before, indent = lines[first].encode()[: body[0].col_offset], lines[start][: function.col_offset]
        if first > start and before.isspace() and 2 <= stop - first <= max_lines:
            head = unindented(lines[start:first], indent)
            expected = "\n".join(lines[first:stop])
            is_whole = body_of(expected, _width(lines[first])) == _trimmed(expected)
            if is_whole and is_python(f"{head}\n{unindented(lines[first:stop], indent)}"):
                found.append(Place(first, stop, head, indent))
    return sorted(found, key=lambda place: place.first)


def _parsed(text: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _first_line(node: ast.stmt) -> int:
    """Counted from 0; a definition begins with its decorators."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)]) - 1


def unindented(lines: Sequence[str], indent: str) -> str:
    """Lines without an indentation that they share."""
    return "\n".join(line.removeprefix(indent) for line in lines)


def _task(kind: Kind, text: str, place: Place, origin: Origin, draw: int) -> Task:
    lines = text.split("\n")
    prompt = "\n".join([*lines[: place.first], ""])[-MAX_PROMPT_CHARACTERS:]
    expected = "\n".join(lines[place.first : place.stop])
    about = (place.head, place.indent, origin.repository, origin.path)
    return Task(kind, prompt, expected, *about, line=place.first + 1, draw=draw)


@dataclass(frozen=True)
class Answer:
    """What of a completion is the answer to a task, and how good it is."""

    text: str
    exact: bool
    similarity: float
    """1: equal to what is expected. 0: no character of it stands where it should."""
    parses: bool | None = None
    """Of a body: whether Python can parse the function."""
    parsed_fraction: float | None = None
    """Of its lines, those of its longest beginning with which Python can."""


def answer(task: Task, completion: str) -> Answer:
    """Judge a completion."""
    if task.kind == "line":
        text = next((line.strip() for line in completion.split("\n") if line.strip()), "")
        expected = task.expected.strip()
        return Answer(text, text == expected, similarity(text, expected))
    body = body_of(completion, _width(task.expected.split("\n")[0]))
    expected = _trimmed(task.expected)
    parses, fraction = parsed(task, body)
    return Answer(body, body == expected, similarity(body, expected), parses, fraction)


def complete_answer(task: Task, completion: str) -> bool:
    """Whether nothing that a model goes on to write changes the answer."""
    ended = completion.split("\n")[:-1]  # the last line may go on
    if task.kind == "line":
        return any(line.strip() for line in ended)
    width = _width(task.expected.split("\n")[0])
    return any(line.strip() and _width(line) < width for line in ended)


def body_of(completion: str, width: int) -> str:
    """The lines of a completion up to the first with something on it that is indented less."""
    lines = itertools.takewhile(lambda line: not line.strip() or _width(line) >= width, completion.split("\n"))
    return _trimmed("\n".join(lines))


def _trimmed(text: str) -> str:
    """Without what nobody sees: spaces at the ends of lines, empty lines at either end."""
    return "\n".join(line.rstrip() for line in text.split("\n")).strip("\n")


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


def parsed(task: Task, body: str) -> tuple[bool, float]:
    """(whether the function with this body parses, the fraction of its lines up to which it does)."""
    lines = unindented(body.split("\n"), task.indent).split("\n") if body else []
    for number in range(len(lines), 0, -1):
        if is_python("\n".join([task.head, *lines[:number]])):
            return number == len(lines), number / len(lines)
    return False, 0.0


def similarity(first: str, second: str) -> float:
    """1 - edit distance / length of the longer one (Levenshtein 1966)."""
    from ukkonen import distance

    longest = max(len(first), len(second))
    return 1 - distance(first, second, longest) / longest if longest else 1.0
