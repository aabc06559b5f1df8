"""The API over HTTP: completions, models, health, metrics, and the playground.

    POST /v1/completions      OpenAI's completions, whole or as server-sent events
    GET  /v1/models           the model, GET /v1/models/NAME likewise
    GET  /healthz             200 while it accepts requests, 503 while it ends; open to all
    GET  /metrics             for Prometheus; figures alone, open to all
    GET  /                    the playground, a page without external resources; open to all

A body is JSON and says so in its Content-Type: a page of another site cannot send that without being allowed to. A
server on loopback answers to names of loopback only, not to another site's name that leads there (DNS rebinding).
"""

import asyncio
import base64
import hashlib
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codeparrot.api_keys import ApiKeys
from codeparrot.completions_api import DONE, ApiError, Delta, choice, event, joined, parse_request, usage
from codeparrot.exchange import Exchange
from codeparrot.serving import CompletionService
from codeparrot.serving_metrics import CONTENT_TYPE

PAGE = Path(__file__).parent / "playground.html"
CLIENT_LEFT = 499
"""nginx's; nobody sees it but the metrics."""
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # or nginx collects a stream before it passes it on
}
ERRORS = {404: "there is nothing at this address", 405: "this method is not allowed here"}


def build_app(service: CompletionService, keys: ApiKeys | None = None, *, loopback: bool = True) -> FastAPI:
    """The application. `loopback`: it listens there alone. Without keys everybody who reaches it may use it."""
    app = FastAPI(openapi_url=None)  # whose pages would load scripts of others
    app.state.service = service
    app.state.keys = keys
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(Exception, _on_other_error)
    app.add_middleware(Guard, loopback=loopback)
    guarded = [Depends(authorized)]
    app.get("/", response_class=HTMLResponse)(playground)
    app.get("/healthz")(healthz)
    app.get("/metrics")(metrics)
    app.get("/v1/models", dependencies=guarded)(models)
    app.get("/v1/models/{name:path}", dependencies=guarded)(model)
    app.post("/v1/completions")(completions)
    return app


def _service(request: Request) -> CompletionService:
    service: CompletionService = request.app.state.service
    return service


async def authorized(request: Request) -> str:
    """What the client's key is called. Raises ApiError (401)."""
    keys: ApiKeys | None = request.app.state.keys
    if keys is None:
        return "-"
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    name = keys.name_of(value.strip()) if scheme.lower() == "bearer" else None
    if name is None:
        what = "wrong API key" if value else "no API key: send `Authorization: Bearer KEY`"
        raise ApiError(401, what, code="invalid_api_key")
    return name


async def completions(request: Request) -> Response:
    """Completions of the prompts in the body."""
    service, began = _service(request), time.monotonic()
    try:
        client = await authorized(request)
        asked = parse_request(await _body(request, service.settings.max_body_bytes))
        exchange = service.accept(asked, client, began)
    except ApiError as error:
        service.metrics.requests.labels(str(error.status)).inc()
        raise
    if asked.stream:
        service.metrics.requests.labels("200").inc()
        return EventStream(exchange)
    answer = await _whole(exchange, request)
    service.metrics.requests.labels(str(answer.status_code)).inc()
    return answer


async def _body(request: Request, max_bytes: int) -> bytes:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "send the header `Content-Type: application/json`")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > max_bytes:
            raise ApiError(413, f"the body is larger than {max_bytes:,} bytes", code="body_too_large")
    return bytes(body)


async def _whole(exchange: Exchange, request: Request) -> Response:
    """All choices in one answer, which nobody gets if the client leaves before."""
    gone = asyncio.create_task(_disconnected(request))
    work = asyncio.create_task(_collected(exchange))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        return JSONResponse(work.result()) if work.done() else Response(status_code=CLIENT_LEFT)
    except ApiError as error:
        return JSONResponse(error.body, status_code=error.status)
    finally:
        exchange.close()
        for task in (gone, work):
            task.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _collected(exchange: Exchange) -> dict[str, Any]:
    parts: dict[int, list[Delta]] = {}
    async for delta in exchange.deltas():
        parts.setdefault(delta.index, []).append(delta)
    choices = [choice(joined(parts[index]), logprobs=exchange.request.logprobs) for index in sorted(parts)]
    return exchange.head.answer(choices, _usage(exchange))


class EventStream(StreamingResponse):
    """An answer as server-sent events."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(_events(exchange), media_type="text/event-stream")
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them; the exchange is closed even if not one of them could be sent."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._exchange.close()


async def _events(exchange: Exchange) -> AsyncIterator[bytes]:
    request, head = exchange.request, exchange.head
    try:
        async for delta in exchange.deltas():
            yield event(head.answer([choice(delta, logprobs=request.logprobs)], None))
    except ApiError as error:  # too late for another status
        yield event(error.body)
        return
    if request.stream_options is not None and request.stream_options.include_usage:
        yield event(head.answer([], _usage(exchange)))
    yield DONE


def _usage(exchange: Exchange) -> dict[str, int]:
    return usage(exchange.plan.num_prompt_tokens, exchange.num_tokens)


async def models(request: Request) -> dict[str, Any]:
    """The one model there is, as a list."""
    return {"object": "list", "data": [_service(request).description]}


async def model(request: Request, name: str) -> dict[str, Any]:
    """The model, by its name."""
    service = _service(request)
    service.require_model(name)
    return service.description


async def healthz(request: Request) -> Response:
    """Whether requests are accepted."""
    problem = _service(request).problem
    return JSONResponse({"status": problem or "ok"}, status_code=503 if problem else 200)


async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    return Response(_service(request).metrics.text(), media_type=CONTENT_TYPE)


async def playground() -> Response:
    """The page to try the model."""
    text, policy = _page()
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


@lru_cache(maxsize=1)
def _page() -> tuple[str, str]:
    """The page, and a policy by which its own style and script run, and nothing else."""
    text = PAGE.read_text("utf-8")
    allowed = {
        f"{tag}-src": " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        )
        for tag in ("style", "script")
    }
    rules = {
        "default-src": "'none'",
        **allowed,
        "connect-src": "'self'",
        "img-src": "data:",
        **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    }
    return text, "; ".join(f"{name} {value}" for name, value in rules.items())


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = ERRORS.get(error.status_code, str(error.detail))
    return await _on_api_error(request, ApiError(error.status_code, message))


async def _on_other_error(request: Request, _: Exception) -> Response:
    return await _on_api_error(request, ApiError(500, "the server failed; its log says why"))


class Guard:
    """Headers of every answer, and the name that the server was asked by."""

    def __init__(self, app: ASGIApp, *, loopback: bool) -> None:
        self._app, self._loopback = app, loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._loopback and not _is_loopback(_header(scope, b"host")):
            refusal = ApiError(421, "this server answers to names of loopback only, such as 127.0.0.1")
            await JSONResponse(refusal.body, status_code=refusal.status, headers=HEADERS)(scope, receive, send)
            return
        await self._app(scope, receive, self._sender(send))

    def _sender(self, send: Send) -> Callable[[Message], Awaitable[None]]:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                names = {name.lower() for name, _ in message["headers"]}
                own = ((name.lower().encode(), value.encode()) for name, value in HEADERS.items())
                more = [pair for pair in own if pair[0] not in names]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        return guarded


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _is_loopback(host: str) -> bool:
    return re.sub(r":\d+$", "", host.lower()) in LOOPBACK_NAMES
