import logging
import pickle
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codeparrot.errors import ConfigError, SourceError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, github_search, read
from codeparrot.sources.github_search import MOST_STARS, Slice
from tests.unit.github_double import QUOTA, GitHubDouble, X, at, github, tarballs
from tests.unit.test_sources_licenses import ISC, OTHER
from tests.unit.web_doubles import Reply

LIMIT = 1_000_000
TOKEN = "ghp_0123456789"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GITHUB_TOKEN", "GITHUB_TOKEN_FILE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub() -> Iterator[GitHubDouble]:
    with github() as double:
        yield double


def documents(hub: GitHubDouble, **settings: Any) -> set[tuple[str, str, str | None]]:
    result = read(hub.entries(**settings), LIMIT)
    assert not result.rejected
    return {(document.repository, document.path, document.license) for document in result.documents}


def named(hub: GitHubDouble, **settings: Any) -> list[str]:
    """The repositories that offer something, in order."""
    return list(dict.fromkeys(entry.repository for entry in hub.entries(**settings)))


def test_a_repository_becomes_documents_with_its_commit_and_licence(hub: GitHubDouble) -> None:
    hub.add("org/one", files={"a.py": b"a = 1\r\n", "deep/er/b.py": X, "notes.txt": X})
    found = read(hub.entries(repositories=["org/one"]), LIMIT).documents
    assert {(each.repository, each.path, each.content, each.revision, each.license, each.source) for each in found} == {
        ("org/one", "a.py", "a = 1\n", hub.repos["org/one"].commit, "MIT", "github"),
        ("org/one", "deep/er/b.py", "x = 1\n", hub.repos["org/one"].commit, "MIT", "github"),
    }


def test_documents_have_the_stars_of_their_repository_and_the_date_of_its_last_push(hub: GitHubDouble) -> None:
    hub.add("org/one", stars=7)
    hub.add("org/two", pushed=None)
    found = read(hub.entries(repositories=["org/one", "org/two"]), LIMIT).documents
    assert [(each.stars, each.updated) for each in found] == [(7, datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)), (0, None)]


def test_include_exclude_and_folders_of_others_are_as_in_a_folder(hub: GitHubDouble) -> None:
    names = ("a/x.py", "a/x_pb2.py", "a/x.pyi", "build/y.py", "venv/lib/z.py")
    hub.add("org/one", files=dict.fromkeys(names, X))
    found = hub.entries(repositories=["org/one"], include=["*.py", "*.pyi"], exclude=["*_pb2.py", "build/*"])
    assert [entry.path for entry in found] == ["a/x.py", "a/x.pyi"]


@pytest.mark.parametrize("unknown", [None, "NOASSERTION"])
def test_a_licence_that_github_does_not_know_is_that_of_licence_files(hub: GitHubDouble, unknown: str | None) -> None:
    files = {"LICENSE": ISC, "a.py": X, "b/COPYING": OTHER, "b/b.py": X}
    hub.add("org/unknown", license=unknown, files=files)
    hub.add("org/known", license="GPL-3.0", files=files)
    found = documents(hub, repositories=["org/unknown", "org/known"])
    assert found == {
        ("org/unknown", "a.py", "ISC"),
        ("org/unknown", "b/b.py", None),
        ("org/known", "a.py", "GPL-3.0-only"),
        ("org/known", "b/b.py", "GPL-3.0-only"),
    }
    assert {found[2] for found in documents(hub, repositories=["org/known"], license="MIT")} == {"MIT"}


def test_of_a_revision_that_is_named_the_licence_is_that_of_its_files(hub: GitHubDouble) -> None:
    """What GitHub tells is the licence of the default branch now."""
    hub.add("org/one", license="GPL-3.0", files={"LICENSE": ISC, "a.py": X})
    for revision in ("v1", "main", hub.repos["org/one"].commit):
        assert documents(hub, repositories=[f"org/one@{revision}"]) == {("org/one", "a.py", "ISC")}


def test_a_search_asks_for_what_the_settings_say(hub: GitHubDouble) -> None:
    search = {
        "languages": ["Python", "Jupyter Notebook"],
        "licenses": ["mit", "isc"],
        "min_stars": 5,
        "max_stars": 50,
        "created_from": "2019-01-01",
        "created_to": "2020-12-31",
        "qualifiers": "topic:on",
    }
    hub.add("org/one", "org/on", "org/none", "org/other", stars=7)
    hub.repos["org/one"].license = "ISC"
    hub.repos["org/on"].language = "Jupyter Notebook"
    hub.repos["org/none"].created = "2021-01-01T00:00:00Z"
    hub.add("org/gone", stars=4)
    hub.add("org/gonna", stars=51)
    assert named(hub, search=search) == ["org/on", "org/one"]
    queries = [request.path for request in hub.asked if "/search/" in request.path]
    assert len(queries) == 4
    assert "q=language%3A%22Jupyter+Notebook%22+license%3Amit+topic%3Aon+archived%3Afalse+" in "".join(queries)
    assert "+stars%3A5..50+created%3A2019-01-01T00%3A00%3A00Z..2020-12-31T23%3A59%3A59Z&" in queries[0]
    assert {request.headers["x-github-api-version"] for request in hub.asked if "/search/" in request.path} == {
        "2022-11-28"
    }
    assert all(request.headers["user-agent"].startswith("codeparrot/") for request in hub.asked)


def test_dates_of_pushes_are_asked_for(hub: GitHubDouble) -> None:
    hub.once("pushed%3A2020-02-01..2049-12-31", Reply(200, b'{"total_count":0,"incomplete_results":false,"items":[]}'))
    with pytest.raises(SourceError, match=r"no repository holds a file that matches \*\.py \(none was found\)"):
        hub.entries(search={"pushed_from": "2020-02-01"})


def test_the_most_starred_are_taken_and_of_equally_starred_ones_the_oldest(hub: GitHubDouble) -> None:
    for number, stars in enumerate([3, 9, 3, 3, 5]):
        hub.add(f"org/{number}", stars=stars, created=at(1_600_000_000 - number))
    assert named(hub, search={"min_stars": 1}, max_repositories=3) == ["org/1", "org/3", "org/4"]


def test_forks_and_archived_repositories_are_taken_only_if_the_settings_say_so(hub: GitHubDouble) -> None:
    hub.add("org/fork", fork=True, stars=1)
    hub.add("org/old", archived=True, stars=1)
    hub.add("org/one", stars=1)
    names = ["org/fork", "org/old"]
    search = {"min_stars": 1}
    assert named(hub, search=search, repositories=names) == ["org/one"]
    assert named(hub, search=search, forks=True) == ["org/fork", "org/one"]
    assert named(hub, search=search, archived=True) == ["org/old", "org/one"]
    assert named(hub, repositories=names, forks=True, archived=True) == names


def test_pages_are_followed_by_their_links(hub: GitHubDouble) -> None:
    for number in range(250):
        hub.add(f"org/{number}", stars=number, is_empty=number > 0)
    named(hub, search={"languages": ["Python"]}, max_repositories=1000)
    pages = [request.path for request in hub.asked if "/search/" in request.path]
    assert len(pages) == 3
    assert [path.rpartition("page=")[2] for path in pages] == ["100", "2", "3"]
    assert len({request.path for request in hub.asked if "/commits/" in request.path}) == 250


class Small:
    """A GitHub that shows few results, so that few repositories are many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, hub: GitHubDouble) -> None:
        monkeypatch.setattr(github_search, "MAX_SHOWN", 6)
        monkeypatch.setattr(github_search, "PAGE", 3)
        self.hub = hub
        hub.most_shown = 6

    def found(self, num: int) -> list[int]:
        """The numbers of the repositories that a search finds."""
        source = self.hub.source(search={"languages": ["Python"]}, max_repositories=num)
        api = source._github()
        search = source.settings.search
        assert search is not None
        return [each.number for each in github_search.search(api, search, num, forks=False, archived=False)]


REPOS = st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 40, 1000, 99_999]), st.integers(0, 5)), max_size=40)


@settings(max_examples=25)
@given(repos=REPOS, num=st.integers(1, 50))
def test_all_are_found_although_few_are_shown(repos: list[tuple[int, int]], num: int) -> None:
    with github() as hub, pytest.MonkeyPatch.context() as monkeypatch:
        for number, (stars, second) in enumerate(repos):
            when = 1_600_000_000 + second if repos.count((stars, second)) <= 6 else 1_600_000_000 + number
            hub.add(f"org/{number}", stars=stars, created=at(when))
        small = Small(monkeypatch, hub)
        best = sorted(hub.repos.values(), key=lambda repo: (-repo.stars, repo.created, repo.number))
        assert small.found(num) == [repo.number for repo in best[:num]]


def test_as_many_are_found_as_are_wanted(hub: GitHubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        hub.add(f"org/{number}", stars=number)
    small = Small(monkeypatch, hub)
    for num in range(1, 22):
        assert small.found(num) == list(range(20, 0, -1))[:num]


def test_the_most_starred_of_very_many_cost_few_requests(hub: GitHubDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(500):
        hub.add(f"org/{number}", stars=number)
    assert Small(monkeypatch, hub).found(3) == [500, 499, 498]
    assert len(hub.asked) < 30


def test_what_cannot_be_cut_any_more_is_told(
    hub: GitHubDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add(*(f"org/{number}" for number in range(8)))
    assert len(Small(monkeypatch, hub).found(100)) == 6
    assert "source 'github': the search 'language:Python archived:false stars:0..0 created:2020-01-01T" in caplog.text
    assert "may have found more than was shown" in caplog.text


STARS = st.integers(0, MOST_STARS)


@given(STARS, STARS, st.integers(0, 2**32), st.integers(0, 2**32))
def test_halves_make_up_the_whole_and_the_one_with_more_stars_comes_first(a: int, b: int, c: int, d: int) -> None:
    part = Slice((min(a, b), max(a, b)), (min(c, d), max(c, d)))
    halves = part.halves()
    if halves is None:
        assert (a, c) == (b, d)
    elif a == b:
        first, second = (half.created for half in halves)
        assert (first[0], first[1] + 1, second[1]) == (part.created[0], second[0], part.created[1])
        assert first[0] <= first[1]
        assert second[0] <= second[1]
    else:
        high, low = (half.stars for half in halves)
        assert (low[0], low[1] + 1, high[1]) == (part.stars[0], high[0], part.stars[1])
        assert low[0] <= low[1]
        assert high[0] <= high[1]


@pytest.mark.parametrize("num_incomplete", [2, 3])
def test_a_search_that_took_too_long_is_asked_again_and_then_cut(hub: GitHubDouble, num_incomplete: int) -> None:
    hub.add("org/one", stars=10)
    incomplete = Reply(200, b'{"total_count": 0, "incomplete_results": true, "items": []}')
    hub.once("/search/", *[incomplete] * num_incomplete)
    assert named(hub, search={"min_stars": 1}) == ["org/one"]
    assert hub.time.slept == [2, 4]


def test_what_is_named_wins_over_what_is_found(hub: GitHubDouble) -> None:
    hub.add("org/one", license="GPL-3.0", stars=5, files={"LICENSE": ISC, "a.py": X})
    assert documents(hub, search={"min_stars": 1}, repositories=["org/one@v1"]) == {("org/one", "a.py", "ISC")}


def test_a_renamed_repository_has_its_new_name(hub: GitHubDouble, caplog: pytest.LogCaptureFixture) -> None:
    hub.add("new/name")
    hub.moved["old/name"] = "new/name"
    assert documents(hub, repositories=["old/name"]) == {("new/name", "a.py", "MIT")}
    assert "source 'github': old/name is called new/name now" in caplog.text
    assert documents(hub, repositories=["old/name", "new/name"]) == {("new/name", "a.py", "MIT")}
    assert "passed over 1 repositories (named_twice): new/name" in caplog.text


def test_repositories_that_cannot_be_had_are_counted_and_the_others_taken(
    hub: GitHubDouble, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("org/one", "org/gone", "org/blocked", "org/secret")
    hub.add("org/empty", is_empty=True)
    hub.add("org/off", disabled=True)
    hub.add("org/fork", fork=True)
    hub.add("org/old", archived=True)
    hub.add("org/text", files={"notes.txt": X})
    hub.add("org/huge", files={"a.py": b"#" * 100_000})
    hub.always("/org/gone/legacy", Reply(404))
    hub.always("/repos/org/blocked", Reply(451, b'{"message": "Repository access blocked"}'))
    hub.always("/repos/org/secret/commits", Reply(403, b'{"message": "Resource not accessible"}'))
    names = [*hub.repos, *(f"no/{number}" for number in range(7)), "org/one2@nothing"]
    hub.add("org/one2")
    assert named(hub, repositories=names, max_unpacked_bytes=90_000) == ["org/one"]
    told = dict(re.findall(r"passed over (\d+ repositories \(\w+\)): (.*)", caplog.text))
    assert told == {
        "1 repositories (archived)": "org/old",
        "1 repositories (blocked)": "org/blocked",
        "1 repositories (disabled)": "org/off",
        "1 repositories (empty)": "org/empty",
        "1 repositories (forbidden)": "org/secret",
        "1 repositories (fork)": "org/fork",
        "1 repositories (no_matching_file)": "org/text",
        "1 repositories (no_revision)": "org/one2",
        "8 repositories (not_found)": "no/0, no/1, no/2, no/3, no/4 and 3 more",
        "1 repositories (too_large)": "org/huge",
    }


def test_nothing_left_is_an_error_with_the_reasons(hub: GitHubDouble) -> None:
    hub.add("org/text", files={"notes.txt": X})
    with pytest.raises(SourceError) as caught:
        hub.entries(repositories=["org/text", "no/where"])
    counts = "(1 no_matching_file, 1 not_found)"
    assert str(caught.value) == f"source 'github': no repository holds a file that matches *.py {counts}"


def test_a_second_run_costs_no_quota_and_fetches_nothing(hub: GitHubDouble) -> None:
    hub.add("org/one", "org/two", stars=1)
    first = hub.entries(search={"min_stars": 1}, repositories=["org/one"])
    used = hub.used
    second = hub.entries(search={"min_stars": 1}, repositories=["org/one"])
    assert [entry.identity() for entry in first] == [entry.identity() for entry in second]
    assert hub.used == used < QUOTA
    assert len(hub.fetched) == 2


def test_a_branch_that_has_moved_is_another_commit(hub: GitHubDouble, cache: Path) -> None:
    hub.add("org/one")
    (before,) = hub.entries(repositories=["org/one"])
    hub.repos["org/one"].files = {"a.py": b"second = 1\n"}
    (after,) = hub.entries(repositories=["org/one"])
    assert before.revision != after.revision == hub.repos["org/one"].commit
    assert len(tarballs(cache)) == 2


def test_a_page_that_was_kept_and_is_damaged_is_asked_for_again(hub: GitHubDouble, cache: Path) -> None:
    hub.add("org/one")
    hub.entries(repositories=["org/one"])
    for path in cache.glob("github/*.json"):
        path.write_bytes(path.read_bytes()[:-20])
    assert documents(hub, repositories=["org/one"]) == {("org/one", "a.py", "MIT")}


def test_another_node_fetches_the_commit_that_was_listed(
    hub: GitHubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/one", files={"a.py": b"first = 1\n", "b.py": X})
    found = pickle.loads(pickle.dumps(hub.entries(repositories=["org/one"])))
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache of another node"))
    asked = len(hub.asked)
    assert [document.content for document in read(found, LIMIT).documents] == ["first = 1\n", "x = 1\n"]
    assert ["tarball" in request.path for request in hub.asked[asked:]] == [True]
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache of a third node"))
    del hub.repos["org/one"]
    with pytest.raises(SourceError, match=r"org/one at [0-9a-f]{40} cannot be had any more \(not_found\); run again"):
        read(found, LIMIT)


def test_what_does_not_fit_in_the_cache_is_fetched_again(
    hub: GitHubDouble, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODEPARROT_CACHE_BYTES", "1")
    hub.add("org/one", "org/two")
    assert documents(hub, repositories=["org/one", "org/two"]) == {
        (f"org/{name}", "a.py", "MIT") for name in ("one", "two")
    }
    assert len(tarballs(cache)) == 1
    assert len(hub.fetched) == 4


def test_what_does_not_belong_to_the_fingerprint_does_not_change_it(hub: GitHubDouble) -> None:
    hub.add("org/one")
    (entry,) = hub.entries(repositories=["org/one"])
    assert entry.identity() == ("github", "org/one", "a.py", hub.repos["org/one"].commit, "MIT", 6, 0)
    hub.repos["org/one"].stars, hub.repos["org/one"].pushed = 99, "2030-01-01T00:00:00Z"
    assert entry.identity() == hub.entries(repositories=["org/one"])[0].identity()


def test_progress_is_told(hub: GitHubDouble, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    hub.add("org/one", "org/two")
    hub.entries(repositories=["org/one", "org/two"])
    assert "source 'github': 2 repositories" in caplog.text


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "say which repositories: search, repositories, or both"),
        ({"search": {}}, "search: say what to search for, or leave `search` out"),
        ({"repositories": ["one"]}, "write owner/name or owner/name@revision, not 'one'"),
        ({"repositories": ["a/.."]}, "write owner/name or owner/name@revision, not 'a/..'"),
        ({"repositories": ["a/b/c"]}, "not 'a/b/c'"),
        ({"repositories": ["a/b@"]}, "not 'a/b@'"),
        ({"repositories": ["a/b@x y"]}, "not 'a/b@x y'"),
        ({"repositories": ["a/b", "A/B@v1"]}, "a repository is named twice"),
        ({"search": {"qualifiers": "stars:>5"}}, "leave stars: out; there is a setting for it"),
        ({"search": {"qualifiers": "a\nb"}}, "write them on one line"),
        ({"search": {"languages": ['C" OR "D']}}, "no name"),
        ({"search": {"min_stars": 5, "max_stars": 4}}, "max_stars is less than min_stars"),
        ({"search": {"created_from": "2020-02-01", "created_to": "2020-01-01"}}, "ends before it begins"),
        ({"repositories": ["a/b"], "api_url": "http://github.example.com"}, "write an https URL: a token may be sent"),
        ({"repositories": ["a/b"], "api_url": "https://t0ken@github.example.com"}, "write only scheme, host and path"),
        ({"repositories": ["a/b"], "api_url": "https://github.example.com:99999"}, "Port out of range"),
        ({"repositories": ["a/b"], "max_repositories": 0}, "must be > 0"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        validate(CollectSettings, {"sources": [{"kind": "github", **values}]}, "run.yaml")
    assert "t0ken" not in str(caught.value)
