"""Repositories at a URL: what is kept on a node, how it is fetched, and that nothing is executed on the way."""

import base64
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from codeparrot.errors import SourceError
from codeparrot.sources import read
from codeparrot.sources.kept import KINDS
from ray_jobs import clean
from tests.unit.git_doubles import commit, entries_of, fake_git, git

LIMIT = 1_000_000
X = b"x = 1\n"
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def clones(cache: Path) -> list[Path]:
    return [path for path in cache.glob("git/*") if path.is_dir() and path.suffix == ""]


def with_git(monkeypatch: pytest.MonkeyPatch, folder: Path, branch: str) -> Path:
    """Make the fake git the one that is found; returns its log."""
    monkeypatch.setenv("PATH", f"{fake_git(folder, branch)}:{os.environ['PATH']}")
    return folder / "log"


def test_a_clone_is_kept_without_history_and_fetched_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path / "r", {b"old.py": X})
    commit(tmp_path / "r", {b"a.py": X})
    log = with_git(monkeypatch, tmp_path / "bin", "")
    for _ in range(2):
        assert len(read(entries_of(f"file://{tmp_path}/r"), LIMIT).documents) == 1
    (clone,) = clones(cache)
    assert git(clone, "rev-list", "--all", "--count") == "1"
    assert log.read_text().count(" fetch ") == 1
    assert clone.parent.stat().st_mode & 0o077 == 0
    assert not (clone / "hooks").exists()


def test_an_annotated_tag_needs_no_clone_of_its_own(tmp_path: Path, cache: Path) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    git(tmp_path / "r", "tag", "--annotate", "--message=x", "v1")
    for revision in ("v1", "main"):
        assert len(read(entries_of(f"file://{tmp_path}/r", revision=revision), LIMIT).documents) == 1
    assert len(clones(cache)) == 1


def test_make_clean_removes_what_was_fetched(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.clean.sweep", lambda: None)
    monkeypatch.setenv("CODEPARROT_STATE", str(tmp_path / "state"))
    commit(tmp_path / "r", {b"a.py": X})
    entries_of(f"file://{tmp_path}/r")
    assert clones(cache)
    for kind in KINDS:
        (cache / kind).mkdir(exist_ok=True)
        (cache / kind / "x.tar.gz").touch()
    assert clean.main() == 0
    assert not cache.exists()


def test_a_branch_that_has_moved_is_another_commit(tmp_path: Path, cache: Path) -> None:
    url = f"file://{tmp_path}/r"
    first = commit(tmp_path / "r", {b"a.py": b"first = 1\n"})
    before = entries_of(url)
    second = commit(tmp_path / "r", {b"a.py": b"second = 1\n"})
    after = entries_of(url)
    assert [entry.revision for entry in (*before, *after)] == [first, second]
    assert len(clones(cache)) == 2


def test_another_node_reads_the_commit_that_was_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"a.py": b"first = 1\n"})
    found = pickle.loads(pickle.dumps(entries_of(f"file://{tmp_path}/r")))
    commit(tmp_path / "r", {b"a.py": b"second = 1\n"})
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache of another node"))
    assert [document.content for document in read(found, LIMIT).documents] == ["first = 1\n"]


def test_of_many_readers_on_a_node_one_fetches(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    found = entries_of(f"file://{tmp_path}/r")
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "fresh"))
    log = with_git(monkeypatch, tmp_path / "bin", "")
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: read(found, LIMIT), range(4)))
    assert [len(result.documents) for result in results] == [1] * 4
    assert log.read_text().count(" fetch ") == 1


def test_a_clone_that_was_cut_off_is_made_anew(tmp_path: Path, cache: Path) -> None:
    """The process is killed in the middle of fetching, with parts of a pack and git's own lock files left behind."""
    commit(tmp_path / "r", {b"a.py": X})
    url = f"file://{tmp_path}/r"
    leave = 'cd "$2" && echo rubbish > objects/pack/tmp_pack_x && touch shallow.lock HEAD.lock && : > HEAD'
    programs = fake_git(tmp_path / "bin", f"*' fetch '*) {leave} && kill -9 $PPID; exit 1;;")
    code = f"from tests.unit.git_doubles import entries_of; entries_of({url!r})"
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = cache.glob("git/*.tmp")
    assert (left / "shallow.lock").exists()
    assert clones(cache) == []
    assert len(read(entries_of(url), LIMIT).documents) == 1
    assert len(clones(cache)) == 1
    assert not left.exists()


def test_a_fetch_that_fails_leaves_nothing_that_looks_whole(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    url = f"file://{tmp_path}/r"
    branch = "*' fetch '*) printf 'remote: \\033[31mbusy\\nfatal: the remote end hung up\\n' >&2; exit 128;;"
    with monkeypatch.context() as broken:
        log = with_git(broken, tmp_path / "bin", branch)
        with pytest.raises(SourceError) as caught:
            entries_of(url)
        assert log.read_text().count(" fetch ") == 1
    assert str(caught.value) == f"source 'git': git repository {url}: remote:  [31mbusy; the remote end hung up"
    assert clones(cache) == []
    assert len(entries_of(url)) == 1


def test_a_server_that_gives_no_single_commit_is_asked_for_all(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = commit(tmp_path / "r", {b"a.py": X})
    commit(tmp_path / "r", {b"b.py": X})
    refusal = "fatal: Server does not allow request for unadvertised object"
    with_git(monkeypatch, tmp_path / "bin", f"*--depth=1*) echo '{refusal}' >&2; exit 128;;")
    assert [entry.path for entry in entries_of(f"file://{tmp_path}/r", revision=first)] == ["a.py"]


def test_a_cache_that_cannot_be_written_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    (tmp_path / "file").touch()
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(SourceError, match=r"cannot keep what it fetches in .*: Not a directory; set CODEPARROT_CACHE"):
        entries_of(f"file://{tmp_path}/r")


TOKEN = "t0ken"


class Private(SimpleHTTPRequestHandler):
    """Files for whoever has the token."""

    def do_GET(self) -> None:
        expected = base64.b64encode(f"me:{TOKEN}".encode()).decode()
        if self.headers.get("Authorization") == f"Basic {expected}":
            return super().do_GET()
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()
        return None

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def private_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A repository behind HTTP that asks for a password, on a server without any protocol of git's."""
    commit(tmp_path / "r", {b"a.py": X})
    git(tmp_path / "r", "update-server-info")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "SSH_ASKPASS", "GIT_ASKPASS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()

    def handler(*arguments: object) -> Private:
        return Private(*arguments, directory=str(tmp_path / "r/.git"))  # type: ignore[arg-type]

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def test_a_private_repository_needs_credentials(private_url: str) -> None:
    with pytest.raises(SourceError, match=r"could not read Username .*terminal prompts disabled"):
        entries_of(private_url)


def test_a_program_in_git_askpass_lets_us_in(private_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "askpass"
    program.write_text(f'#!/bin/sh\ncase "$1" in Username*) echo me;; *) echo {TOKEN};; esac\n')
    program.chmod(0o700)
    monkeypatch.setenv("GIT_ASKPASS", str(program))
    log = with_git(monkeypatch, tmp_path / "bin", "")
    assert len(read(entries_of(private_url), LIMIT).documents) == 1
    assert TOKEN not in log.read_text()


def test_a_netrc_lets_us_in(private_url: str, tmp_path: Path) -> None:
    (tmp_path / "home/.netrc").write_text(f"machine 127.0.0.1 login me password {TOKEN}\n")
    (entry,) = entries_of(private_url, repository="private")
    assert len(read([entry], LIMIT).documents) == 1


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A program that leaves a mark, and a user whose configuration starts it at every occasion."""
    program, mark = tmp_path / "trap", tmp_path / "executed"
    program.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{mark}'\nexit 1\n")
    program.chmod(0o755)
    hooks = tmp_path / "home/hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc"):
        (hooks / name).symlink_to(program)
    (tmp_path / "home/.gitconfig").write_text(traps(program) + f"[core]\n\thooksPath = {hooks}\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "core.hooksPath")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", str(hooks))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_EXTERNAL_DIFF", str(program))
    yield program
    assert not mark.exists(), mark.read_text()


def traps(program: Path) -> str:
    return f"""
[core]
    fsmonitor = {program}
    sshCommand = {program}
    gitProxy = {program}
    alternateRefsCommand = {program}
    pager = {program}
[uploadpack]
    packObjectsHook = {program}
[protocol]
    allow = always
[credential]
    helper = !{program}
[filter "evil"]
    clean = {program}
    smudge = {program}
    required = true
[diff "evil"]
    textconv = {program}
    command = {program}
"""


def with_traps(folder: Path, program: Path, url: str) -> None:
    """A repository whose hooks, filters and promised objects would all execute the program."""
    commit(folder, {b"a.py": X, b"lost.py": b"lost = 1\n", b".gitattributes": b"* filter=evil diff=evil\n"})
    for name in ("post-checkout", "reference-transaction", "pre-auto-gc", "post-index-change"):
        path = folder / ".git/hooks" / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(program)
    remote = f'[remote "evil"]\n    url = {url}\n    promisor = true\n    uploadpack = {program}\n'
    config = folder / ".git/config"
    extension = "[extensions]\n    partialClone = evil\n"
    config.write_text(config.read_text().replace("version = 0", "version = 1") + traps(program) + remote + extension)


@pytest.fixture(params=["ext::{program}", "file://{program}", "ssh://host.invalid/x"])
def promiser(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a repository says that it gets its missing objects: each way would start a program that it names."""
    return str(request.param).format(program=tmp_path / "trap")


def test_nothing_that_a_repository_or_a_user_has_configured_is_executed(
    tmp_path: Path, trap: Path, promiser: str
) -> None:
    folder = tmp_path / "r"
    with_traps(folder, trap, promiser)
    for url in (str(folder), f"file://{folder}"):
        result = read(entries_of(url), LIMIT)
        assert {document.path for document in result.documents} == {"a.py", "lost.py"}


@pytest.mark.parametrize("forgets", ["GIT_NO_LAZY_FETCH", "GIT_ALLOW_PROTOCOL"])
def test_an_object_that_a_repository_promises_is_not_fetched_by_its_program(
    tmp_path: Path, trap: Path, promiser: str, forgets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two variables see to that, of which an older git knows only one: each of them is enough."""
    folder = tmp_path / "r"
    with_traps(folder, trap, promiser)
    lost = git(folder, "rev-parse", "HEAD:lost.py")
    whole = entries_of(folder)
    (folder / ".git/objects" / lost[:2] / lost[2:]).unlink()
    with_git(monkeypatch, tmp_path / "bin", f"*) unset {forgets};;")
    for url in (str(folder), f"file://{folder}"):
        with pytest.raises(SourceError, match=r"git repository .*r: "):
            entries_of(url)
    with pytest.raises(SourceError, match=r"git repository .*r: "):
        read(whole, LIMIT)


def test_the_traps_are_traps(tmp_path: Path, promiser: str) -> None:
    """Or the tests above could not fail."""
    program, mark = tmp_path / "trap", tmp_path / "executed"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\nexit 1\n")
    program.chmod(0o755)
    folder = tmp_path / "r"
    with_traps(folder, program, promiser)
    lost = git(folder, "rev-parse", "HEAD:lost.py")
    (folder / ".git/objects" / lost[:2] / lost[2:]).unlink()
    environment = {**os.environ, "GIT_PROTOCOL_FROM_USER": "1"}
    for command in (("cat-file", "blob", lost), ("status",), ("update-ref", "refs/heads/x", "HEAD")):
        mark.unlink(missing_ok=True)
        subprocess.run(["git", *command], cwd=folder, env=environment, capture_output=True, check=False)
        assert mark.exists(), command
