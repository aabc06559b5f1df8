"""What happens where GitHub says no, not now, or half of it; and where its token goes."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeparrot.errors import SourceError
from codeparrot.sources import read
from tests.unit.github_double import (
    GitHubDouble,
    X,
    described,
    github,
    primary_limit,
    refused,
    secondary_limit,
    tarballs,
)
from tests.unit.web_doubles import Reply, Request, serving

ROOT = Path(__file__).parents[2]
LIMIT = 1_000_000
TOKEN = "ghp_0123456789"
ONE = ["org/one"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("GITHUB_TOKEN", "GITHUB_TOKEN_FILE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def hub() -> Iterator[GitHubDouble]:
    with github() as double:
        double.add("org/one")
        yield double


def failure(hub: GitHubDouble, **settings: object) -> str:
    with pytest.raises(SourceError) as caught:
        hub.entries(**{"repositories": ONE, **settings})
    message = str(caught.value)
    assert message.startswith("source 'github': ")
    assert "\n" not in message
    return message


def documents(hub: GitHubDouble) -> list[str]:
    return [document.content for document in read(hub.entries(repositories=ONE), LIMIT).documents]


@pytest.mark.parametrize("status", [403, 429])
def test_the_primary_limit_is_waited_for_until_it_is_reset(
    hub: GitHubDouble, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    hub.once("/commits/", primary_limit(hub, 1234, status))
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [1235]
    assert "source 'github': 127.0.0.1 asks to wait 1,235 s, until 2023-11-14 22:33:55 UTC" in caplog.text


def test_a_clock_that_is_wrong_here_does_not_matter(hub: GitHubDouble) -> None:
    hub.once("/commits/", primary_limit(hub, 100))
    source = hub.source(repositories=ONE)
    object.__setattr__(source._clock, "now", lambda: hub.time.now() + 10_000)
    assert len(source.entries()) == 1
    assert hub.time.slept == [101]


@pytest.mark.parametrize("status", [403, 429])
def test_the_secondary_limit_is_waited_for_as_long_as_it_says(hub: GitHubDouble, status: int) -> None:
    hub.once("/tarball/", secondary_limit(status, headers={"Retry-After": "77"}))
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [77]


def test_retry_after_wins_over_what_is_left_of_the_quota(hub: GitHubDouble) -> None:
    hub.once("/commits/", secondary_limit(headers={"Retry-After": "5", "X-RateLimit-Remaining": "0"}))
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [5]


def test_a_limit_that_does_not_say_how_long_is_waited_for_longer_each_time(hub: GitHubDouble) -> None:
    hub.once("/commits/", secondary_limit(403), secondary_limit(429), Reply(429))
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [60, 120, 240]


def test_a_server_that_is_busy_is_waited_for(hub: GitHubDouble) -> None:
    hub.once("/commits/", Reply(503, headers={"Retry-After": "Tue, 14 Nov 2023 22:14:00 GMT"}))
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [40]


def test_a_wait_that_is_too_long_is_an_error_and_what_was_fetched_is_kept(hub: GitHubDouble, cache: Path) -> None:
    hub.add("org/two")
    hub.once("/org/two/tarball/", primary_limit(hub, 100))
    message = failure(hub, repositories=["org/one", "org/two"], max_wait_seconds=99)
    assert message.endswith(
        "127.0.0.1 asks to wait until 2023-11-14 22:15:01 UTC, longer than is allowed (99 s); "
        "run again then, what was fetched is kept"
    )
    assert hub.time.slept == []
    assert len(tarballs(cache)) == 1
    hub.entries(repositories=["org/one", "org/two"])
    assert len(hub.fetched) == 2


@pytest.mark.parametrize("seconds", ["9" * 20, "9" * 400])
def test_a_wait_without_end_is_too_long(hub: GitHubDouble, seconds: str) -> None:
    hub.once("/commits/", secondary_limit(headers={"Retry-After": seconds}))
    assert "longer than is allowed (4,000 s)" in failure(hub)


def test_waits_for_one_answer_add_up(hub: GitHubDouble) -> None:
    hub.once("/commits/", *[secondary_limit(headers={"Retry-After": "40"})] * 3)
    assert "longer than is allowed (99 s)" in failure(hub, max_wait_seconds=99)
    assert hub.time.slept == [40, 40]


def test_what_is_forbidden_is_not_waited_for(hub: GitHubDouble) -> None:
    hub.once("/commits/", refused(403, "Resource not accessible by personal access token"))
    assert "1 forbidden" in failure(hub)
    assert hub.time.slept == []


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500),
        Reply(502, b"<html>"),
        Reply(200, b'{"id": 1, "full_', num_sent=5),
        Reply(200, b'{"id": 1, "full_', num_sent=0),
    ],
)
def test_what_may_pass_is_tried_again(hub: GitHubDouble, reply: Reply) -> None:
    hub.once("/repos/org/one", reply, reply)
    assert documents(hub) == ["x = 1\n"]
    assert hub.time.slept == [1, 2]


def test_what_does_not_pass_is_an_error(hub: GitHubDouble) -> None:
    hub.always("/repos/org/one", Reply(502))
    assert failure(hub) == "source 'github': 127.0.0.1: it answers 502, 5 times"
    assert hub.time.slept == [1, 2, 4, 8]


def test_a_server_that_is_not_there_is_an_error(hub: GitHubDouble, free_port: int) -> None:
    message = failure(hub, api_url=f"http://127.0.0.1:{free_port}")
    assert message == "source 'github': 127.0.0.1: no connection, 5 times"


@pytest.mark.parametrize("has_length", [True, False])
def test_an_archive_that_is_cut_off_is_fetched_again(hub: GitHubDouble, has_length: bool) -> None:
    whole = hub.repos["org/one"].tarball()
    cuts = [Reply(200, whole, num_sent=num, has_length=has_length) for num in (0, 10, len(whole) - 1)]
    hub.once("legacy.tar.gz", *cuts)
    assert documents(hub) == ["x = 1\n"]
    assert len(hub.fetched) == 4


def test_an_archive_with_a_wrong_byte_is_fetched_again(hub: GitHubDouble) -> None:
    whole = bytearray(hub.repos["org/one"].tarball())
    whole[-6] ^= 1  # of the checksum
    hub.once("legacy.tar.gz", Reply(200, bytes(whole)), Reply(200, b"<html>no archive</html>"))
    assert documents(hub) == ["x = 1\n"]
    assert len(hub.fetched) == 3


def test_an_archive_that_stays_damaged_is_an_error_and_is_not_kept(hub: GitHubDouble, cache: Path) -> None:
    hub.always("legacy.tar.gz", Reply(200, hub.repos["org/one"].tarball()[:-9], has_length=False))
    assert "127.0.0.1: the archive that it sends is damaged: " in failure(hub)
    assert tarballs(cache) == []
    assert list(cache.glob("github/*.tmp")) == []


def test_an_archive_that_was_damaged_in_the_cache_is_named(hub: GitHubDouble, cache: Path) -> None:
    hub.entries(repositories=ONE)
    (path,) = tarballs(cache)
    path.write_bytes(path.read_bytes()[:-9])
    message = failure(hub)
    assert f"{path} is damaged (" in message
    assert message.endswith("; delete it, and it is fetched again")
    path.unlink()
    assert documents(hub) == ["x = 1\n"]


def test_an_archive_without_end_is_not_fetched_to_its_end(hub: GitHubDouble) -> None:
    hub.always("legacy.tar.gz", Reply(200, bytes(10_000_000)))
    assert "1 too_large" in failure(hub, max_unpacked_bytes=1000)


def test_a_cache_that_cannot_be_written_is_an_error(
    hub: GitHubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "file/cache"))
    assert "cannot keep what it fetches in" in failure(hub)
    assert failure(hub).endswith(": Not a directory; set CODEPARROT_CACHE to another folder")


def test_a_run_that_was_killed_goes_on_where_it_was(hub: GitHubDouble, cache: Path) -> None:
    """Killed in the middle of the second archive."""
    hub.add("org/two", files={"a.py": X, "b.py": b"#" * 100_000})
    hub.add("org/last")
    names = ["org/one", "org/two", "org/last"]
    settings = {"kind": "github", "api_url": hub.url, "repositories": names}
    code = (
        "import os, signal; from codeparrot.sources import CollectSettings, open_source, web\n"
        "save = web._save\n"
        "def saved(response, path, **rest):\n"
        "    if '/org/two/' in response.url:\n"
        "        path.write_bytes(b'half of it'); os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return save(response, path, **rest)\n"
        "web._save = saved\n"
        f"open_source(CollectSettings(sources=[{settings!r}]).sources[0]).entries()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(list(cache.glob("github/*.tmp"))) == 1
    fetched, used = len(hub.fetched), hub.used
    assert {entry.repository for entry in hub.entries(repositories=names)} == set(names)
    assert [request.path.split("/")[2] for request in hub.fetched[fetched:]] == ["two"]
    assert list(cache.glob("github/*.tmp")) == []
    assert hub.used < used + 6


def with_token(hub: GitHubDouble) -> tuple[list[str | None], list[str | None]]:
    """The Authorization that API and archives got."""
    hub.entries(repositories=ONE)
    return [each.headers.get("authorization") for each in hub.asked], [
        each.headers.get("authorization") for each in hub.fetched
    ]


def test_the_token_goes_to_the_api_and_not_where_it_redirects_to(
    hub: GitHubDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("GITHUB_TOKEN", f"{TOKEN}\n")
    assert with_token(hub) == ([f"Bearer {TOKEN}"] * 3, [None])
    assert TOKEN not in caplog.text
    assert all(TOKEN.encode() not in path.read_bytes() for path in cache.rglob("*") if path.is_file())


def test_the_token_may_lie_in_a_file(hub: GitHubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("GITHUB_TOKEN_FILE", str(tmp_path / "token"))
    assert with_token(hub) == ([f"Bearer {TOKEN}"] * 3, [None])


def test_without_a_token_and_with_a_netrc_nothing_is_sent(
    hub: GitHubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    assert with_token(hub) == ([None] * 3, [None])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "cannot read the file that GITHUB_TOKEN_FILE names: No such file or directory"),
        ("", "the file that GITHUB_TOKEN_FILE names is empty"),
        ("\xe9", "cannot read the file that GITHUB_TOKEN_FILE names: it is no text"),
        ("two words", "what stands in GITHUB_TOKEN, or in the file of GITHUB_TOKEN_FILE, is no token"),
    ],
)
def test_a_token_that_is_none_is_named_without_repeating_it(
    hub: GitHubDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, problem: str
) -> None:
    if text is not None:
        (tmp_path / "token").write_text(text)
    monkeypatch.setenv("GITHUB_TOKEN_FILE", str(tmp_path / "token"))
    assert failure(hub) == f"source 'github': {problem}"
    assert hub.asked == []


@pytest.mark.parametrize("part", ["/repos/org/one", "/search/", "/tarball/"])
def test_a_token_that_is_refused_is_an_error(hub: GitHubDouble, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    hub.always(part, refused(401, "Bad credentials"))
    message = failure(hub, search={"languages": ["Python"]})
    assert message == "source 'github': the token was refused; renew GITHUB_TOKEN, or what GITHUB_TOKEN_FILE names"


def test_a_server_that_lets_nobody_in_without_a_token_is_an_error(hub: GitHubDouble) -> None:
    hub.always("/repos/", refused(401, "Requires authentication"))
    assert failure(hub) == "source 'github': 127.0.0.1 asks for a token; set GITHUB_TOKEN, or GITHUB_TOKEN_FILE"


def test_no_error_shows_where_an_archive_lay(hub: GitHubDouble, caplog: pytest.LogCaptureFixture) -> None:
    """The address that GitHub redirects to lets anybody in who knows it."""
    hub.always("legacy.tar.gz", Reply(500))
    assert "token=" not in failure(hub) + caplog.text


def test_a_search_that_is_refused_is_an_error_with_what_github_says(hub: GitHubDouble) -> None:
    hub.always("/search/", refused(422, "Validation\nFailed\x1b[31m" + "x" * 500))
    message = failure(hub, search={"qualifiers": "topic:"})
    assert message.startswith("source 'github': 127.0.0.1 answers 422: Validation Failed [31mxxx")
    assert len(message) < 300


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"id": "x"}', b'{"license": 1, "id": 1, "full_name": "a", "default_branch": 1}']
)
def test_a_server_that_is_no_github_is_an_error(hub: GitHubDouble, body: bytes) -> None:
    hub.always("/repos/org/one", Reply(200, body))
    hub.always("/search/", Reply(200, body))
    assert "correct api_url" in failure(hub)
    assert "correct api_url" in failure(hub, repositories=[], search={"min_stars": 1})


@pytest.mark.parametrize("name", ["../../x", "org/..", "org/one\n", "one"])
def test_a_repository_with_a_name_that_is_none_is_an_error(hub: GitHubDouble, name: str) -> None:
    hub.always("/repos/org/one", described({**hub.repos["org/one"].described(), "full_name": name}))
    assert "tells of a repository whose name is none" in failure(hub)


def test_a_commit_that_is_no_hash_is_an_error(hub: GitHubDouble) -> None:
    hub.always("/commits/", Reply(200, b"../../x"))
    assert "tells of a commit of org/one that is no hash" in failure(hub)


@pytest.mark.parametrize(
    "target", ["{here}/tarball/again", "file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "/:::x"]
)
def test_a_redirect_that_leads_nowhere_is_an_error(hub: GitHubDouble, target: str) -> None:
    hub.always("/tarball/", Reply(302, headers={"Location": target.format(here=hub.url)}))
    hub.always("/:::x", Reply(404))
    assert failure(hub)


def test_a_redirect_to_another_server_that_redirects_back_gets_no_token_on_the_way(
    hub: GitHubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    seen: list[Request] = []

    def other(request: Request) -> Reply:
        seen.append(request)
        return Reply(307, headers={"Location": f"{hub.url}/repositories/1"})

    with serving(other, hub.time.now) as url:
        hub.once("/repos/org/one", Reply(301, headers={"Location": f"{url}/x"}))
        assert documents(hub) == ["x = 1\n"]
    assert [request.headers.get("authorization") for request in seen] == [None]
    assert hub.asked[1].path == "/repositories/1"
    assert hub.asked[1].headers["authorization"] == f"Bearer {TOKEN}"
