"""A hub of data sets on loopback, as the real one answers (https://huggingface.co/docs/hub/api)."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlparse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(ThreadingHTTPServer):
    """One data set at one commit, whose branch is `main`."""

    def __init__(self, dataset: str, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.dataset = dataset
        self.files = dict(files)
        self.lost: set[str] = set()
        """Files that are listed, but gone."""
        self.sent_bytes = 0
        self.paths: list[str] = []
        """What was asked for, in order."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def about(self, path: str) -> dict[str, Any]:
        data = self.files[path]
        return {"type": "file", "path": path, "size": len(data), "oid": self.oid(data)}

    @staticmethod
    def oid(data: bytes) -> str:
        """What names the content."""
        return hashlib.sha1(data).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, asked: Any = None) -> None:
        hub, path = self.server, unquote(urlparse(self.path).path)
        hub.paths.append(f"{self.command} {path}")
        dataset, revisions = re.escape(hub.dataset), f"(main|{COMMIT})"
        if re.fullmatch(f"/api/datasets/{dataset}(/revision/{revisions})?", path):
            siblings = [{"rfilename": name} for name in hub.files]
            self.send_json({"_id": "0", "id": hub.dataset, "sha": COMMIT, "siblings": siblings})
        elif found := re.fullmatch(f"/api/datasets/{dataset}/tree/{revisions}/?(.*)", path):
            self.send_tree(found[2])
        elif re.fullmatch(f"/api/datasets/{dataset}/paths-info/{revisions}", path):
            self.send_json([hub.about(name) for name in asked["paths"] if name in hub.files])
        elif found := re.fullmatch(f"/datasets/{dataset}/resolve/{revisions}/(.*)", path):
            self.send_file(found[2])
        else:
            code = "RevisionNotFound" if dataset in path else "RepoNotFound"
            self.send(404, b'{"error": "not found"}', {"X-Error-Code": code})

    def send_tree(self, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        below = [name for name in sorted(self.server.files) if name.startswith(prefix)]
        if not below:
            self.send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        tops = {prefix + name.removeprefix(prefix).partition("/")[0] for name in below}
        folders = [
            {"type": "directory", "path": top, "size": 0, "oid": hashlib.sha1(top.encode()).hexdigest()}
            for top in sorted(tops.difference(self.server.files))
        ]
        wanted = below if "recursive=true" in self.path.lower() else sorted(tops.intersection(self.server.files))
        self.send_json([*folders, *map(self.server.about, wanted)])

    def send_file(self, name: str) -> None:
        commit = {"X-Repo-Commit": COMMIT}
        data = self.server.files.get(name)
        if data is None or name in self.server.lost:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            return
        headers = {"ETag": f'"{self.server.oid(data)}"', "Accept-Ranges": "bytes", **commit}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None:
            self.send(200, data, headers)
            return
        start, stop = int(wanted[1]), min(int(wanted[2]) + 1, len(data))
        self.send(206, data[start:stop], {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}", **headers})

    def send_json(self, value: Any) -> None:
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, status: int, data: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
            self.server.sent_bytes += len(data)


@contextmanager
def running(dataset: str, files: Mapping[str, bytes]) -> Iterator[Hub]:
    """The hub, answering in a thread."""
    with Hub(dataset, files) as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
