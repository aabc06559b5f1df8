import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeparrot.decontaminate import DecontaminateSettings, Problems, read_benchmarks
from codeparrot.errors import SourceError

SENTENCE = "return the number of pairs whose sum is zero in a list that may hold one number twice"


def benchmark(folder: Path, *problems: Any, name: str = "benchmark.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))
    return path


def problems_of(*paths: Path, shared_words: int = 13) -> Problems:
    return read_benchmarks(DecontaminateSettings(files=paths, shared_words=shared_words))[1]


def test_a_document_shares_a_run_of_words_with_a_problem_wherever_it_stands_and_however_it_is_laid_out(
    tmp_path: Path,
) -> None:
    found = problems_of(benchmark(tmp_path, {"task_id": "A/1", "prompt": f'def f():\n    """{SENTENCE}"""'}))
    commented = "x = 1\n" + "\n".join(f"#   {word}," for word in SENTENCE.split()) + "\ny = 2\n"
    twelve = " ".join(SENTENCE.split()[:12])
    assert found.shared([commented, twelve, "", "print(1)"]) == [{"A/1": 6}, {}, {}, {}]


def test_numbers_that_stand_everywhere_are_not_looked_for(tmp_path: Path) -> None:
    numbers = ", ".join(map(str, range(40)))
    found = problems_of(benchmark(tmp_path, {"task_id": "A", "t": f"assert f([{numbers}]) == 7\n{SENTENCE}\u00e9"}))
    assert found.shared([f"x = [{numbers}]", f"{numbers} {SENTENCE}\u00e9"]) == [{}, {"A": 6}]


def test_all_texts_of_a_problem_count_but_its_name(tmp_path: Path) -> None:
    inner = {"task_id": SENTENCE, "tests": [{"code": "one two three four five"}], "level": 3, "hint": None}
    found = problems_of(benchmark(tmp_path, inner), shared_words=4)
    shared = found.shared(["a one two three four five b", SENTENCE])
    assert shared == [{SENTENCE: 2}, {}]


def test_problems_without_a_name_are_named_by_their_line(tmp_path: Path) -> None:
    path = benchmark(tmp_path, {"text": "a b c"}, {"text": "d e f"})
    assert problems_of(path, shared_words=3).shared(["d e f", "a b c d e f"]) == [
        {"benchmark.jsonl:2": 1},
        {"benchmark.jsonl:1": 1, "benchmark.jsonl:2": 1},
    ]


def test_one_text_in_two_problems_is_told_of_both(tmp_path: Path) -> None:
    first = benchmark(tmp_path, {"task_id": "A", "t": "a b c"})
    second = benchmark(tmp_path, {"task_id": "B", "t": "a b c"}, name="other.jsonl")
    assert problems_of(first, second, shared_words=3).shared(["a b c a b c"]) == [{"A": 1, "B": 1}]


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), min_size=3, max_size=12))
def test_what_is_shared_is_what_sets_of_python_say(document: list[str], problem: list[str]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[place : place + 3]) for place in range(len(words) - 2)}

    path = Path("problem")
    digest, found = _problems(path, " ".join(problem))
    common = runs(document) & runs(problem)
    assert found.shared([" ".join(document)]) == [{"P": len(common)} if common else {}]
    assert len(digest) == 64


def _problems(path: Path, text: str) -> tuple[str, Problems]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda _: json.dumps({"task_id": "P", "text": text}).encode())
        return read_benchmarks(DecontaminateSettings(files=(path,), shared_words=3))


def test_a_compressed_benchmark_is_the_same_benchmark(tmp_path: Path) -> None:
    plain = benchmark(tmp_path, {"task_id": "A", "t": SENTENCE})
    packed = tmp_path / "benchmark.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    one, two = (read_benchmarks(DecontaminateSettings(files=(path,))) for path in (plain, packed))
    assert one[0] == two[0]
    assert one[1].shared([SENTENCE]) == two[1].shared([SENTENCE]) != [{}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no problem"),
        (b"\n\n", "holds no problem"),
        (b'{"text": "a"}\nnot json', "line 2: not JSON"),
        (b"[1]", "line 1: not an object"),
        (b'{"text": "too short"}', r"no problem of benchmark .*bad\.jsonl has 13 words; lower shared_words"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'{"text": "\\ud800"}', "no problem of benchmark .* has 13 words"),
        (gzip.compress(b"{}", mtime=0)[:-6], "cannot read benchmark"),
        (b"\x1f\x8b\x08\x00 damaged beyond repair", "cannot read benchmark"),
    ],
)
def test_a_benchmark_that_cannot_be_used_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=message):
        problems_of(path)


def test_problems_that_are_too_short_to_be_found_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    problems_of(benchmark(tmp_path, {"t": SENTENCE}, {"t": "reverse a list"}, {"t": "sort a list"}))
    assert "2 of 3 problems have no run of 13 words and are not looked for" in caplog.text


def test_a_name_that_two_benchmarks_give_is_told_apart_by_the_file(tmp_path: Path) -> None:
    first = benchmark(tmp_path, {"task_id": 1, "t": "a b c"})
    second = benchmark(tmp_path, {"task_id": 1, "t": "d e f"}, name="other.jsonl")
    found = problems_of(first, second, shared_words=3)
    assert found.shared(["a b c", "d e f"]) == [{"1": 1}, {"other.jsonl:1": 1}]


def test_letter_case_does_not_hide_a_problem(tmp_path: Path) -> None:
    found = problems_of(benchmark(tmp_path, {"task_id": "A", "t": SENTENCE.title()}))
    assert found.shared([SENTENCE.upper(), SENTENCE]) == [{"A": 6}, {"A": 6}]


def test_a_benchmark_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot read benchmark .*absent\.jsonl: No such file"):
        problems_of(tmp_path / "absent.jsonl")
