import base64
import hashlib
import json
import logging
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from codeparrot.errors import ConfigError, SourceError
from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, SdistSettings, read
from codeparrot.sources.sdist import SdistSource
from codeparrot.sources.web import Clock
from tests.unit.archive_doubles import pack
from tests.unit.test_sources_licenses import ISC
from tests.unit.web_doubles import FakeTime, Reply, Request, serving

LIMIT = 1_000_000
X = b"x = 1\n"
JSON = "application/vnd.pypi.simple.v1+json"
MIT_METADATA = b"Metadata-Version: 2.4\nName: p\nLicense-Expression: MIT\n\n"


class IndexDouble:
    """An index in the shape of PEP 691, and files on another server."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.time = FakeTime()
        self.pages: dict[str, list[dict[str, Any]]] = {}
        self.files: dict[str, bytes] = {}
        self.replies: dict[str, list[Reply]] = {}
        """What is answered first, by path."""
        self.asked: list[Request] = []
        self.fetched: list[Request] = []
        self.url = self.elsewhere = ""

    def add(self, file: str, files: dict[str, bytes] | None = None, **about: Any) -> None:
        """A source distribution, under the name that its file has."""
        stem = re.sub(r"\.(tar\.gz|zip)$", "", file)
        files = {"PKG-INFO": MIT_METADATA, "a.py": X} if files is None else files
        path = pack(self.folder / file, {f"{stem}/{name}": data for name, data in files.items()})
        self.files[file] = path.read_bytes()
        digest = hashlib.sha256(self.files[file]).hexdigest()
        described = {"filename": file, "url": f"{self.elsewhere}/files/{file}", "hashes": {"sha256": digest}}
        self.pages.setdefault(stem.rpartition("-")[0], []).append({**described, "yanked": False, **about})

    def entries(self, *distributions: str, **settings: Any) -> list[Entry]:
        values = {"kind": "sdist", "distributions": distributions, "index_url": f"{self.url}/simple/", **settings}
        found = validate(CollectSettings, {"sources": [values]}, "run.yaml").sources[0]
        assert isinstance(found, SdistSettings)
        return list(SdistSource(found, Clock(self.time.now, self.time.sleep)).entries())

    def index(self, request: Request) -> Reply:
        self.asked.append(request)
        assert request.headers["accept"] == JSON
        if self.replies.get(request.path):
            return self.replies[request.path].pop(0)
        name = request.path.split("/")[2]
        if request.path.startswith("/files/"):
            return Reply(200, self.files[name])
        if name not in self.pages:
            return Reply(404, b"<html>")
        page = {"meta": {"api-version": "1.1"}, "name": name, "files": self.pages[name]}
        return Reply(200, json.dumps(page).encode(), {"Content-Type": JSON})

    def file(self, request: Request) -> Reply:
        self.fetched.append(request)
        if self.replies.get(request.path):
            return self.replies[request.path].pop(0)
        return Reply(200, self.files[request.path.split("/")[2]])


@contextmanager
def package_index(folder: Path) -> Iterator[IndexDouble]:
    double = IndexDouble(folder)
    now = double.time.now
    with serving(double.index, now) as double.url, serving(double.file, now) as double.elsewhere:
        yield double


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("PIP_INDEX_URL", "PIP_INDEX_URL_FILE", "UV_INDEX_URL", "UV_DEFAULT_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexDouble]:
    (tmp_path / "files").mkdir()
    with package_index(tmp_path / "files") as double:
        yield double


def failure(index: IndexDouble, *distributions: str, **settings: Any) -> str:
    with pytest.raises(SourceError) as caught:
        index.entries(*distributions, **settings)
    message = str(caught.value)
    assert message.startswith("source 'sdist': ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_a_distribution_becomes_documents_with_version_and_licence(index: IndexDouble, suffix: str) -> None:
    files = {"PKG-INFO": MIT_METADATA, "src/p/a.py": b"a = 1\r\n", "setup.cfg": X}
    index.add(f"my_project-1.0.post2{suffix}", files)
    index.pages["my-project"] = index.pages.pop("my_project")
    (document,) = read(index.entries("My.Project==1.0.post2"), LIMIT).documents
    assert (document.repository, document.path, document.revision, document.license, document.content) == (
        "my-project",
        "src/p/a.py",
        "1.0.post2",
        "MIT",
        "a = 1\n",
    )


def test_a_name_alone_is_the_newest_version_that_is_neither_yanked_nor_a_pre_release(index: IndexDouble) -> None:
    for version in ("1.9", "1.10", "2.0rc1"):
        index.add(f"p-{version}.tar.gz")
    index.add("p-1.11.tar.gz", yanked="broken")
    index.pages["p"].append({"filename": "p-3.0-py3-none-any.whl", "url": "x", "hashes": {}})
    assert {entry.revision for entry in index.entries("p")} == {"1.10"}
    index.add("q-1.0a1.tar.gz")
    index.add("q-1.0a2.zip")
    assert {entry.revision for entry in index.entries("q")} == {"1.0a2"}


def test_a_version_that_was_yanked_is_taken_if_it_is_named(
    index: IndexDouble, caplog: pytest.LogCaptureFixture
) -> None:
    index.add("p-1.0.tar.gz", yanked=True)
    assert len(index.entries("p==1.0.0")) == 1
    assert "source 'sdist': p-1.0.tar.gz was yanked from the index" in caplog.text


def test_of_two_archives_of_a_version_the_tar_is_taken(index: IndexDouble) -> None:
    index.add("p-1.0.zip", {"zip.py": X})
    index.add("p-1.0.tar.gz", {"tar.py": X})
    assert [entry.path for entry in index.entries("p")] == ["tar.py"]


@pytest.mark.parametrize(
    ("metadata", "license"),
    [
        (b"Name: p\nClassifier: License :: OSI Approved :: MIT License\n\n", "MIT"),
        (b"Name: p\nLicense: no such thing\n\n", "ISC"),
        (b"\xff\xfe", "ISC"),
        (None, "ISC"),
    ],
)
def test_where_the_metadata_do_not_tell_the_licence_licence_files_do(
    index: IndexDouble, metadata: bytes | None, license: str
) -> None:
    files = {"LICENSE": ISC, "a.py": X} | ({} if metadata is None else {"PKG-INFO": metadata})
    index.add("p-1.0.tar.gz", files)
    assert [entry.license for entry in index.entries("p")] == [license]
    assert [entry.license for entry in index.entries("p", license="GPL-3.0-only")] == ["GPL-3.0-only"]


def test_include_exclude_and_folders_of_others_are_as_in_a_folder(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz", dict.fromkeys(("a/x.py", "a/x_pb2.py", "a/x.pyi", "venv/z.py"), X))
    found = index.entries("p", include=["*.py", "*.pyi"], exclude=["*_pb2.py"])
    assert [entry.path for entry in found] == ["a/x.py", "a/x.pyi"]


def test_an_archive_is_fetched_once(index: IndexDouble, cache: Path) -> None:
    index.add("p-1.0.tar.gz")
    first, second = index.entries("p==1.0"), index.entries("p")
    assert [entry.identity() for entry in first] == [entry.identity() for entry in second]
    assert len(index.fetched) == 1
    assert len(list(cache.glob("sdist/*.tar.gz"))) == 1


def test_another_node_fetches_the_very_file(
    index: IndexDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("p-1.0.tar.gz")
    found = pickle.loads(pickle.dumps(index.entries("p")))
    monkeypatch.setenv("CODEPARROT_CACHE", str(tmp_path / "cache of another node"))
    index.add("p-2.0.tar.gz")
    asked = len(index.asked)
    assert [document.revision for document in read(found, LIMIT).documents] == ["1.0"]
    assert len(index.asked) == asked


def test_a_file_with_another_hash_is_fetched_again_and_then_refused(index: IndexDouble, cache: Path) -> None:
    index.add("p-1.0.tar.gz")
    wrong = Reply(200, b"something else")
    index.replies["/files/p-1.0.tar.gz"] = [wrong, Reply(200, index.files["p-1.0.tar.gz"], num_sent=20)]
    assert len(index.entries("p")) == 1
    index.add("q-1.0.tar.gz", {"q.py": X})
    index.replies["/files/q-1.0.tar.gz"] = [wrong] * 9
    digest = hashlib.sha256(b"something else").hexdigest()
    assert f"127.0.0.1: the file that it sends has the SHA-256 {digest}, not " in failure(index, "q")
    assert len(list(cache.glob("sdist/*.tar.gz"))) == 1


def test_a_file_whose_hash_is_not_told_does_not_count(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz", hashes={"md5": "x"})
    index.add("q-1.0.tar.gz", hashes={"sha256": "../x"})
    message = failure(index, "p==1.0", "q")
    assert "p (no source distribution of version 1.0 with a SHA-256)" in message
    assert "q (no source distribution that is not yanked)" in message


def test_all_that_the_index_lacks_is_told_at_once(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz")
    assert failure(index, "p==2.0", "nothing", "p2") == (
        "source 'sdist': the index lacks nothing (no distribution of this name), "
        "p (no source distribution of version 2.0 with a SHA-256), p2 (no distribution of this name)"
    )


def test_the_index_is_that_of_the_settings_or_of_the_environment(
    index: IndexDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.add("p-1.0.tar.gz")
    assert failure(index, "p", index_url=None) == (
        "source 'sdist': no package index is named; set index_url, or PIP_INDEX_URL in the environment"
    )
    for name in ("UV_INDEX_URL", "UV_DEFAULT_INDEX", "PIP_INDEX_URL"):
        with monkeypatch.context() as alone:
            alone.setenv(name, f"{index.url}/simple")
            assert len(index.entries("p", index_url=None)) == 1
    for wrong in ("nonsense", "https://me:x@[", "https://x:99999"):
        monkeypatch.setenv("PIP_INDEX_URL", wrong)
        assert len(index.entries("p")) == 1
        assert failure(index, "p", index_url=None) == "source 'sdist': PIP_INDEX_URL is no http or https URL"


def test_the_index_may_stand_in_a_file(index: IndexDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index.add("p-1.0.tar.gz")
    monkeypatch.setenv("PIP_INDEX_URL_FILE", str(tmp_path / "url"))
    reason = "cannot read the file that PIP_INDEX_URL_FILE names: No such file or directory"
    assert failure(index, "p", index_url=None) == f"source 'sdist': {reason}"
    (tmp_path / "url").write_text(f"{index.url}/simple\n")
    assert len(index.entries("p", index_url=None)) == 1
    (tmp_path / "url").write_text("nonsense")
    message = "what the file of PIP_INDEX_URL_FILE holds is no http or https URL"
    assert failure(index, "p", index_url=None) == f"source 'sdist': {message}"


def test_a_password_goes_to_the_index_and_nowhere_else(
    index: IndexDouble, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    index.add("p-1.0.tar.gz")
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:t%40ken@") + "/simple/")
    found = index.entries("p", index_url=None)
    expected = "Basic " + base64.b64encode(b"me:t@ken").decode()
    assert [request.headers.get("authorization") for request in index.asked] == [expected]
    assert [request.headers.get("authorization") for request in index.fetched] == [None]
    assert "t%40ken" not in repr(found) + caplog.text
    assert "t@ken" not in repr(found) + caplog.text


def test_a_password_is_not_sent_unencrypted(index: IndexDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:t0ken@index.example.com/simple")
    message = failure(index, "p", index_url=None)
    assert message == "source 'sdist': PIP_INDEX_URL has a password that would be sent unencrypted; use https"


@pytest.mark.parametrize("status", [401, 403])
def test_an_index_that_lets_nobody_in_is_an_error(index: IndexDouble, status: int) -> None:
    index.replies["/simple/p/"] = [Reply(status)]
    assert f"right user and password (it answers {status})" in failure(index, "p")


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"meta": {"api-version": "2.0"}, "files": []}',
        b'{"meta": {"api-version": "1.0"}, "files": [{}]}',
        b'{"meta": {"api-version": "1.0"}, "files": [1]}',
    ],
)
def test_an_index_without_a_json_api_is_an_error(index: IndexDouble, body: bytes) -> None:
    index.replies["/simple/p/"] = [Reply(200, body)]
    assert failure(index, "p").endswith("the index has no JSON API (PEP 691) here; correct index_url")


def test_a_file_that_is_gone_is_an_error(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz")
    index.replies["/files/p-1.0.tar.gz"] = [Reply(404)]
    assert failure(index, "p") == "source 'sdist': the index gives no p-1.0.tar.gz: it answers 404"


def test_an_archive_that_is_damaged_unpacks_to_too_much_or_holds_nothing_is_an_error(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz", {"a.txt": X})
    assert failure(index, "p") == "source 'sdist': no distribution holds a file that matches *.py"
    index.add("q-1.0.tar.gz", {"a.py": b"#" * 100_000})
    message = failure(index, "q", max_unpacked_bytes=50_000)
    assert message == "source 'sdist': q-1.0.tar.gz unpacks to more than 50,000 bytes; raise max_unpacked_bytes"
    index.add("s-1.0.tar.gz")
    assert "sends more than 100 bytes; raise max_unpacked_bytes" in failure(index, "s", max_unpacked_bytes=100)
    index.add("r-1.0.tar.gz")
    index.files["r-1.0.tar.gz"] = b"no archive"
    index.pages["r"][0]["hashes"]["sha256"] = hashlib.sha256(b"no archive").hexdigest()
    assert "r-1.0.tar.gz: " in failure(index, "r")
    assert "is damaged (" in failure(index, "r")


def test_a_busy_index_is_waited_for_and_one_that_fails_is_tried_again(index: IndexDouble) -> None:
    index.add("p-1.0.tar.gz")
    index.replies["/simple/p/"] = [Reply(429, headers={"Retry-After": "7"}), Reply(503), Reply(200, b"{", num_sent=0)]
    assert len(index.entries("p")) == 1
    assert index.time.slept == [7, 1, 2]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"distributions": []}, "distributions: "),
        ({"distributions": ["p>=1"]}, "write name or name==version, not 'p>=1'"),
        ({"distributions": ["p==1.*"]}, "write name or name==version, not 'p==1.*'"),
        ({"distributions": ["p==1,==1"]}, "write name or name==version"),
        ({"distributions": ["p[extra]"]}, "write name or name==version"),
        ({"distributions": ["p @ https://example.com/p.tar.gz"]}, "write name or name==version"),
        ({"distributions": ["../p"]}, "write name or name==version"),
        ({"distributions": ["a_b", "A.b==1"]}, "a distribution is named twice"),
        ({"index_url": "ftp://index.example.com"}, "write an http or https URL"),
        ({"index_url": "https://index.example.com:99999"}, "write an http or https URL"),
        ({"index_url": "https://me:x@index.example.com"}, "leave user and password out of it"),
    ],
)
def test_wrong_settings_are_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)) as caught:
        validate(CollectSettings, {"sources": [{"kind": "sdist", "distributions": ["p"], **values}]}, "run.yaml")
    assert "me:x" not in str(caught.value)
