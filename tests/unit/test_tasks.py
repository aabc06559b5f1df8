"""Tasks cut from code, and answers to them."""

import ast
import warnings
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot import tasks as module
from codeparrot.tasks import (
    Origin,
    Task,
    TaskSettings,
    answer,
    body_of,
    body_places,
    chosen,
    line_places,
    similarity,
    tasks_of,
)

CODE = '''import os

class Shelf:
    """Books."""

    @property
    def top(
        self,
    ):
        """The first
        one."""
        # of all
        books = self.books
        return books[0]

    def one_liner(self): return 1

    async def read(self, name):

        async with self.lock:
            return await self.get(name)


def empty():
    """Nothing else."""
'''
ORIGIN = Origin("packages\0shelf\0shelf.py", "shelf", "shelf.py")
SETTINGS = TaskSettings(num_lines=5, num_bodies=5)


def body_task(expected: str = "        x = 1\n        return x", indent: str = "    ") -> Task:
    return Task("body", "...", expected, "def f(self):\n    '''It.'''", indent, "r", "p.py", 3, 0)


def test_bodies_begin_after_the_docstring_and_hold_comments_as_part_of_the_prompt() -> None:
    lines = CODE.split("\n")
    found = {place.head: "\n".join(lines[place.first : place.stop]) for place in body_places(CODE, max_lines=12)}
    assert found == {
        '@property\ndef top(\n    self,\n):\n    """The first\n    one."""\n    # of all': (
            "        books = self.books\n        return books[0]"
        ),
        "async def read(self, name):\n": "        async with self.lock:\n            return await self.get(name)",
    }


def test_bodies_that_are_too_long_and_texts_that_are_not_python_have_no_tasks() -> None:
    assert body_places("def f():\n    a = 1\n    b = 2\n    return a\n", max_lines=3)
    assert not body_places("def f():\n    a = 1\n    b = 2\n    return a\n", max_lines=2)
    assert not body_places("def f(:\n    a = 1\n    return a\n", max_lines=3)
    assert not body_places("def f(): a = 1; return a\n", max_lines=3)


def test_lines_worth_asking_for_are_not_the_first_nor_short_nor_comments() -> None:
    text = "import this_one\n\n# a long comment\nx = 1\n    value = compute()\n"
    assert [place.first for place in line_places(text)] == [4]


def test_a_prompt_ends_where_what_is_expected_begins() -> None:
    found = tasks_of(CODE, ORIGIN, SETTINGS, seed=1)
    assert [task.kind for task in found] == ["line", "body"]
    for task in found:
        assert CODE.startswith(task.prompt + task.expected)
        assert task.prompt.endswith("\n")
        assert task.line == task.prompt.count("\n") + 1


def test_tasks_depend_on_seed_and_document_alone() -> None:
    assert tasks_of(CODE, ORIGIN, SETTINGS, seed=1) == tasks_of(CODE, ORIGIN, SETTINGS, seed=1)
    places = {task.line for seed in range(20) for task in tasks_of(CODE, ORIGIN, SETTINGS, seed=seed)}
    assert len(places) > 3
    assert tasks_of(CODE, ORIGIN, TaskSettings(num_lines=0, num_bodies=0), seed=1) == []


def test_of_many_documents_those_with_the_smallest_draws_are_taken_wherever_they_lie() -> None:
    found = [
        task
        for number in range(30)
        for task in tasks_of(CODE, Origin(f"{number}", "r", f"{number}.py"), SETTINGS, seed=1)
    ]
    parts = chosen([*chosen(found[:20], SETTINGS), *chosen(found[20:], SETTINGS)], SETTINGS)
    assert parts == chosen(found[::-1], SETTINGS) == chosen(found, SETTINGS)
    assert [task.kind for task in parts] == ["line"] * 5 + ["body"] * 5


def test_a_long_prompt_keeps_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PROMPT_CHARACTERS", 10)
    assert all(len(task.prompt) <= 10 for task in tasks_of(CODE, ORIGIN, SETTINGS, seed=1))


@pytest.mark.parametrize("name", ["argparse.py", "dataclasses.py", "textwrap.py", "typing.py"])
def test_the_authors_own_bodies_are_perfect_answers(name: str) -> None:
    text = (Path(ast.__file__).parent / name).read_text()
    lines = text.split("\n")
    places = body_places(text, max_lines=12)
    assert len(places) > 5
    for place in places:
        expected = "\n".join(lines[place.first : place.stop])
        task = Task("body", "", expected, place.head, place.indent, "r", name, place.first + 1, 0)
        rest = "\n".join(lines[place.first :])
        assert body_of(expected, len(lines[place.first]) - len(lines[place.first].lstrip()))
        judged = answer(task, expected)
        assert (judged.exact, judged.similarity, judged.parses, judged.parsed_fraction) == (True, 1.0, True, 1.0)
        assert answer(task, rest).text.startswith(judged.text) or '"""' in expected or "'''" in expected


@pytest.mark.parametrize(
    ("completion", "text", "exact", "similarity_of_it"),
    [
        ("x = foo(1)\nmore", "x = foo(1)", True, 1.0),
        ("\n   \n    x = foo(1)   \n", "x = foo(1)", True, 1.0),
        ("x = foo(2)", "x = foo(2)", False, 0.9),
        ("", "", False, 0.0),
    ],
)
def test_the_answer_to_a_line_is_the_first_line_with_anything_on_it(
    completion: str, text: str, exact: bool, similarity_of_it: float
) -> None:
    task = Task("line", "", "    x = foo(1)", "", "", "r", "p", 1, 0)
    found = answer(task, completion)
    assert (found.text, found.exact, found.parses) == (text, exact, None)
    assert found.similarity == pytest.approx(similarity_of_it)


def test_the_answer_to_a_body_ends_where_something_is_indented_less() -> None:
    found = answer(body_task(), "        x = 1\n\n        return x   \n\n    def g(self):\n        pass\n")
    assert found.text == "        x = 1\n\n        return x"
    assert not found.exact
    assert found.parses
    assert answer(body_task(), "        x = 1\n        return x\n\n\n").exact


def test_what_does_not_parse_counts_up_to_where_it_does() -> None:
    found = answer(body_task(), "        x = 1\n        y = 2\n        return x +")
    assert not found.parses
    assert found.parsed_fraction == pytest.approx(2 / 3)
    nothing = answer(body_task(), "class A:\n    pass")
    assert (nothing.text, nothing.parses, nothing.parsed_fraction) == ("", False, 0.0)


def test_code_that_python_warns_of_or_refuses_to_read_is_judged_all_the_same() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(body_task(), "        return '\\d'").parses
    assert answer(body_task(), "        x = '\0'").parses is False
    assert answer(body_task(), f"        x = {'(' * 500}").parses is False


@given(st.text("ab\n ", max_size=9), st.text("ab\n ", max_size=9))
def test_similarity_is_that_of_the_textbook(first: str, second: str) -> None:
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        previous, row = row, [i]
        for j, b in enumerate(second, 1):
            row.append(min(row[-1] + 1, previous[j] + 1, previous[j - 1] + (a != b)))
    longest = max(len(first), len(second))
    assert similarity(first, second) == pytest.approx(1 - row[-1] / longest if longest else 1.0)
