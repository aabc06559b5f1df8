import os
import shutil
import stat
import tempfile
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from codeparrot.documents import ReadReason
from codeparrot.errors import ConfigError, SourceError
from codeparrot.sources import read
from codeparrot.sources.git import _last_part
from codeparrot.sources.git_repository import is_url
from tests.unit.git_doubles import commit, entries_of, fake_git, git
from tests.unit.trees import TREES, outcome, write

LIMIT = 1_000_000
X = b"x = 1\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def urls(folder: Path) -> list[str]:
    return [str(folder), f"file://{folder}"]


def contents(url: str | Path, **settings: Any) -> dict[str, str]:
    result = read(entries_of(url, **settings), LIMIT)
    assert not result.rejected
    return {document.path: document.content for document in result.documents}


def test_a_commit_becomes_documents_with_its_full_hash(tmp_path: Path) -> None:
    newest = commit(tmp_path / "project", {b"a.py": b"a = 1\r\n", b"deep/er/b.py": X, b"notes.txt": X})
    for url in urls(tmp_path / "project"):
        documents = read(entries_of(url, license="MIT"), LIMIT).documents
        found = {(each.repository, each.path, each.content, each.revision, each.license) for each in documents}
        assert found == {
            ("project", "a.py", "a = 1\n", newest, "MIT"),
            ("project", "deep/er/b.py", "x = 1\n", newest, "MIT"),
        }


def test_documents_have_the_date_of_their_commit(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    for url in urls(tmp_path / "r"):
        assert [entry.updated for entry in entries_of(url)] == [datetime(2020, 1, 1, tzinfo=UTC)]


def test_what_is_checked_out_does_not_matter(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"a.py": b"committed = 1\n"})
    (tmp_path / "r/a.py").write_bytes(b"changed = 1\n")
    (tmp_path / "r/new.py").write_bytes(X)
    for url in urls(tmp_path / "r"):
        assert contents(url) == {"a.py": "committed = 1\n"}


def test_where_a_repository_lies_does_not_change_what_it_is(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"a.py": X, b"b.py": X})
    by_path, by_url = ([entry.identity() for entry in entries_of(url)] for url in urls(tmp_path / "r"))
    assert by_path == by_url
    commit(tmp_path / "r", {b"a.py": X, b"b.py": X, b"c.txt": X})
    assert by_path != [entry.identity() for entry in entries_of(tmp_path / "r")]


@pytest.mark.parametrize("place", [0, 1])
def test_a_branch_a_tag_and_a_commit_are_revisions(tmp_path: Path, place: int) -> None:
    folder = tmp_path / "r"
    first = commit(folder, {b"a.py": b"first = 1\n"})
    git(folder, "tag", "light")
    git(folder, "tag", "--annotate", "--message=x", "heavy")
    git(folder, "branch", "topic/one")
    commit(folder, {b"a.py": b"second = 1\n"})
    url = urls(folder)[place]
    for revision in ("light", "heavy", "topic/one", "refs/heads/topic/one", "heads/topic/one", first):
        (entry,) = entries_of(url, revision=revision)
        assert entry.revision == first
        assert contents(url, revision=revision) == {"a.py": "first = 1\n"}
    for revision in ("HEAD", "main"):
        assert contents(url, revision=revision) == {"a.py": "second = 1\n"}


def test_of_a_tag_and_a_branch_with_one_name_the_tag_is_taken_as_git_does(tmp_path: Path) -> None:
    first = commit(tmp_path / "r", {b"a.py": X})
    git(tmp_path / "r", "tag", "--annotate", "--message=x", "same")
    commit(tmp_path / "r", {b"b.py": X})
    git(tmp_path / "r", "branch", "same")
    for url in urls(tmp_path / "r"):
        assert [entry.revision for entry in entries_of(url, revision="same")] == [first]


def test_a_path_takes_an_abbreviated_hash_and_a_url_asks_for_all_of_it(tmp_path: Path) -> None:
    newest = commit(tmp_path / "r", {b"a.py": X})
    assert entries_of(tmp_path / "r", revision=newest[:8])[0].revision == newest
    with pytest.raises(SourceError, match=r"no revision .* or the full hash of a commit"):
        entries_of(f"file://{tmp_path}/r", revision=newest[:8])


@pytest.mark.parametrize("place", [0, 1])
def test_since_a_revision_only_what_was_added_or_changed_counts(tmp_path: Path, place: int) -> None:
    folder = tmp_path / "r"
    commit(folder, {b"same.py": X, b"changed.py": X, b"deleted.py": X, b"old.py": b"moved = 1\n"})
    git(folder, "tag", "v1")
    commit(folder, {b"same.py": X, b"changed.py": b"x = 2\n", b"added.py": X, b"new.py": b"moved = 1\n"})
    found = contents(urls(folder)[place], since="v1")
    assert found == {"changed.py": "x = 2\n", "added.py": "x = 1\n", "new.py": "moved = 1\n"}
    with pytest.raises(SourceError, match=r"holds no file at v1 that matches \*\.py and has changed since v1"):
        entries_of(urls(folder)[place], revision="v1", since="v1")


def test_symbolic_links_and_submodules_are_passed_over(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    newest = commit(folder, {b"a.py": X})
    (folder / "link.py").symlink_to("a.py")
    git(folder, "add", "link.py")
    git(folder, "update-index", "--add", "--cacheinfo", f"160000,{newest},module.py")
    git(folder, "commit", "--quiet", "--message=x")
    assert git(folder, "ls-tree", "--name-only", "HEAD").split() == ["a.py", "link.py", "module.py"]
    for url in urls(folder):
        assert contents(url) == {"a.py": "x = 1\n"}


def test_include_exclude_and_folders_of_others_are_as_in_a_folder(tmp_path: Path) -> None:
    names = (b"a/x.py", b"a/x_pb2.py", b"a/x.pyi", b"build/y.py", b"venv/lib/z.py", b"a/node_modules/b/c.py")
    commit(tmp_path / "r", dict.fromkeys(names, X))
    found = entries_of(tmp_path / "r", include=["*.py", "*.pyi"], exclude=["*_pb2.py", "build/*"])
    assert [entry.path for entry in found] == ["a/x.py", "a/x.pyi"]


def test_a_file_name_that_is_not_utf_8_is_written_printably(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"caf\xe9/\xff.py": X, b'quo"te\n.py': X})
    for url in urls(tmp_path / "r"):
        assert set(contents(url)) == {"caf\\xe9/\\xff.py", 'quo"te\n.py'}


def test_every_file_that_cannot_be_a_document_is_counted_with_its_reason(tmp_path: Path) -> None:
    files = {b"big.py": b"#" * 101, b"limit.py": b"#" * 100, b"nul.py": b"x = '\0'", b"empty.py": b""}
    commit(tmp_path / "r", {**files, b"latin.py": b"'\xe9'", b"unended.py": b"x = 1"})
    for url in urls(tmp_path / "r"):
        result = read(entries_of(url), 100)
        assert {entry.path: reason for entry, reason in result.rejected} == {
            "big.py": ReadReason.TOO_LARGE,
            "nul.py": ReadReason.BINARY,
            "empty.py": ReadReason.EMPTY,
            "latin.py": ReadReason.BAD_ENCODING,
        }
        assert [document.path for document in result.documents] == ["limit.py", "unended.py"]


@settings(max_examples=15)
@given(files=TREES)
def test_a_commit_gives_what_a_folder_of_the_same_files_gives(files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as name:
        commit(Path(name, "r"), {path.encode(): data for path, data in files.items()})
        write(Path(name, "plain"), files)
        assert outcome("git", url=f"{name}/r") == outcome("directory", path=f"{name}/plain")


def test_a_shard_is_read_by_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"%d.py" % number: X for number in range(30)})
    found = entries_of(tmp_path / "r")
    monkeypatch.setenv("PATH", f"{fake_git(tmp_path / 'bin', '')}:{os.environ['PATH']}")
    assert len(read(found, LIMIT).documents) == 30
    assert (tmp_path / "bin/log").read_text().count("\n") == 1


@pytest.mark.parametrize("make", ["bare", "worktree"])
def test_a_bare_repository_and_a_linked_worktree_are_repositories(tmp_path: Path, make: str) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    how = ("clone", "--quiet", "--bare", ".") if make == "bare" else ("worktree", "add", "--quiet")
    git(tmp_path / "r", *how, str(tmp_path / "other.git"))
    assert contents(tmp_path / "other.git") == {"a.py": "x = 1\n"}
    assert entries_of(tmp_path / "other.git")[0].repository == "other"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_repository_of_another_user_can_be_read(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    for path in (tmp_path / "r", *(tmp_path / "r").rglob("*")):
        os.chown(path, 65534, 65534)
    assert contents(tmp_path / "r") == {"a.py": "x = 1\n"}


def test_variables_of_git_do_not_lead_to_another_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "other", {b"wrong.py": X})
    commit(tmp_path / "r", {b"a.py": X})
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "other/.git/objects"))
    for url in urls(tmp_path / "r"):
        assert contents(url) == {"a.py": "x = 1\n"}


def test_a_replaced_object_does_not_change_a_commit(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    commit(folder, {b"a.py": b"true = 1\n"})
    right = git(folder, "rev-parse", "HEAD:a.py")
    wrong = git(folder, "hash-object", "-w", "--stdin", data=b"false = 1\n")
    git(folder, "replace", right, wrong)
    assert git(folder, "cat-file", "blob", right) == "false = 1"
    assert contents(folder) == {"a.py": "true = 1\n"}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host.invalid/org/project.git", "project"),
        ("ssh://git@host.invalid:22/org/project/", "project"),
        ("git@host.invalid:project.git", "project"),
        ("/some/where/project/.git", "project"),
        ("/some/where/project.git/", "project"),
    ],
)
def test_a_repository_is_called_by_the_last_part_of_its_url(url: str, name: str) -> None:
    assert _last_part(url) == name


def test_a_repository_may_be_called_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    monkeypatch.chdir(tmp_path / "r")
    assert [entry.repository for entry in entries_of(".")] == ["r"]
    (entry,) = entries_of(".", repository="mine", name="ours")
    assert (entry.repository, entry.source) == ("mine", "ours")


@pytest.mark.parametrize(
    ("url", "expected"),
    [("/a/b:c", False), ("a/b", False), ("./a:b", False), ("a:b", True), ("file:///a", True), ("https://a/b", True)],
)
def test_a_url_is_what_git_takes_for_one(url: str, expected: bool) -> None:
    assert is_url(url) is expected


def problem(**values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        entries_of(values.pop("url", "/r"), **values)
    return str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:s3cret@host.invalid/x.git",
        "https://s3cret@host.invalid/x.git",
        "http://s3cret:@host.invalid/x.git",
        "ssh://git:s3cret@host.invalid/x.git",
        "git:s3cret@host.invalid:x.git",
    ],
)
def test_a_url_with_a_secret_is_refused_without_repeating_it(url: str) -> None:
    message = problem(url=url)
    assert "url: leave user, password and token out of it; use SSH, ~/.netrc or GIT_ASKPASS" in message
    assert "s3cret" not in message


@pytest.mark.parametrize(
    "url", ["ext::sh -c 'touch /tmp/x'", "fd::17", "ext::sh://x", "-uevil", "", "a\nb", "ftp://h/x"]
)
def test_a_url_that_names_a_program_or_nothing_is_refused(url: str) -> None:
    assert "sources.0.git: url: " in problem(url=url)


@pytest.mark.parametrize(
    "revision", ["-x", "--upload-pack=evil", "", "a b", "a..b", "HEAD@{1}", "HEAD~1", ":/x", "a\0"]
)
def test_a_revision_is_the_name_of_a_branch_tag_or_commit(revision: str) -> None:
    assert "sources.0.git.revision: write the name of a branch or tag" in problem(revision=revision)
    assert "sources.0.git.since: write the name of a branch or tag" in problem(since=revision)


def failure(url: str | Path, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read(entries_of(url, **settings), LIMIT)
    message = str(caught.value)
    assert message.startswith("source 'git': ")
    assert "\n" not in message
    return message


def test_a_repository_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    assert failure(tmp_path / "none").endswith(f"cannot read repository {tmp_path}/none: No such file or directory")
    assert "not a git repository" in failure(tmp_path)
    assert "does not appear to be a git repository" in failure(f"file://{tmp_path}/none")
    assert "cannot read repository ~no-such-user/r" in failure("~no-such-user/r")


def test_a_folder_in_a_repository_is_none(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"inner/a.py": X})
    assert "not a git repository" in failure(tmp_path / "r/inner")


@pytest.mark.parametrize("revision", ["nope", "a" * 40])
def test_a_revision_that_is_not_there_is_an_error(tmp_path: Path, revision: str) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    for url in urls(tmp_path / "r"):
        assert f"no revision '{revision}'; write a branch, a tag or" in failure(url, revision=revision)
        assert f"no revision '{revision}'" in failure(url, since=revision)


def test_a_repository_without_a_commit_or_a_matching_file_is_an_error(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "r")
    for url in urls(tmp_path / "r"):
        assert "no revision 'HEAD'" in failure(url)
    commit(tmp_path / "r", {b"notes.txt": X})
    for url in urls(tmp_path / "r"):
        assert failure(url).endswith(f"git repository {url} holds no file at HEAD that matches *.py")


def test_a_machine_without_git_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    found = entries_of(tmp_path / "r")
    monkeypatch.setenv("PATH", str(tmp_path))
    for url in urls(tmp_path / "r"):
        assert "git cannot be started here (No such file or directory); install it on every node" in failure(url)
    with pytest.raises(SourceError, match="git cannot be started here"):
        read(found, LIMIT)


def object_of(folder: Path, name: str) -> Path:
    found = git(folder, "rev-parse", name)
    path = folder / ".git/objects" / found[:2] / found[2:]
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)
    return path


def test_a_damaged_repository_is_an_error_with_the_reason_of_git(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    commit(folder, {b"a.py": X, b"inner/b.py": b"#" * 5000})
    whole = entries_of(folder)
    blob, tree = object_of(folder, "HEAD:inner/b.py"), object_of(folder, "HEAD:inner")
    blob.write_bytes(blob.read_bytes()[:-10])
    assert "unable to stream" in failure(folder)
    blob.unlink()
    assert "the content of inner/b.py is missing; fetch it" in failure(folder)
    with pytest.raises(SourceError, match=r"source 'git': git repository .*missing"):
        read(whole, LIMIT)
    tree.write_bytes(b"rubbish")
    assert "git repository" in failure(folder)
    shutil.rmtree(folder / ".git/objects")
    assert "git repository" in failure(folder)


def test_an_entry_of_another_kind_of_object_is_an_error(tmp_path: Path) -> None:
    commit(tmp_path / "r", {b"a.py": X})
    (entry,) = entries_of(tmp_path / "r")
    tree = git(tmp_path / "r", "rev-parse", "HEAD^{tree}").encode()
    with pytest.raises(SourceError, match="git repository"):
        read([replace(entry, location=tree)], LIMIT)
