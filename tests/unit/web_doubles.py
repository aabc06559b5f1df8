"""A server on loopback that answers as a test tells it to, and a clock that only waiting moves."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FakeTime:
    """Hours pass at once."""

    seconds: float = 1_700_000_000.0
    slept: list[float] = field(default_factory=list)

    def now(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@dataclass(frozen=True)
class Request:
    path: str
    """With its query."""
    headers: Mapping[str, str]
    """Their names in small letters."""


@dataclass(frozen=True)
class Reply:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    num_sent: int | None = None
    """Bytes of the body that are sent before the connection ends; None: all."""
    has_length: bool = True


@contextmanager
def serving(answer: Callable[[Request], Reply], now: Callable[[], float]) -> Iterator[str]:
    """The URL of a server that answers in this way."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = answer(Request(self.path, headers))
            self.send_response_only(reply.status)
            length = {"Content-Length": str(len(reply.body))} if reply.has_length and reply.status != 304 else {}
            for name, value in {"Date": formatdate(now(), usegmt=True), **length, **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body[: reply.num_sent])
            self.close_connection = True

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
