"""A tiny model behind the real HTTP server, in a thread of the test process: no Ray, no store."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import openai
import uvicorn

from codeparrot.api_keys import ApiKeys
from codeparrot.completion_plan import Served, ServeSettings
from codeparrot.model import ModelSettings, build_model, export_files, model_config
from codeparrot.serving import CompletionService
from codeparrot.serving_metrics import ServingMetrics
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from codeparrot.vocabulary import Vocabulary
from ray_jobs.http_api import build_app

VOCAB_SIZE = 400
CONTEXT = 128
NAME = "tiny"


@lru_cache(maxsize=1)
def tiny(folder: Path) -> Served:
    """A GPT-2 as it was initialised, and a tokenizer trained on a file of real code; they lie in the folder too."""
    from transformers import AutoTokenizer

    folder.mkdir(exist_ok=True)
    spec = find_spec("argparse")
    assert spec is not None
    assert spec.origin is not None
    for name, data in tokenizer_files(train_tokenizer([Path(spec.origin).read_bytes()], VOCAB_SIZE), CONTEXT).items():
        (folder / name).write_bytes(data)
    vocabulary = Vocabulary(AutoTokenizer.from_pretrained(folder))
    settings = ModelSettings(n_layer=2, n_head=2, n_embd=32)
    model = build_model(model_config(settings, vocab_size=VOCAB_SIZE, max_seq_len=CONTEXT, eos_token_id=0), seed=3)
    for name, data in export_files(model).items():
        (folder / name).write_bytes(data)
    return Served(model.eval(), vocabulary, NAME, "fp_test", created=1_700_000_000)


@dataclass
class Server:
    """A server that answers."""

    port: int
    service: CompletionService

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", retries: int = 0) -> openai.OpenAI:
        """The real client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=retries, timeout=60)


@contextlib.contextmanager
def serving(served: Served, settings: ServeSettings | None = None, keys: ApiKeys | None = None) -> Iterator[Server]:
    """Serve until the block ends, then stop as at a SIGTERM: what was accepted is answered first."""
    service = CompletionService(served, settings or ServeSettings(), ServingMetrics())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(build_app(service, keys), log_config=None, lifespan="off", access_log=False)
        server = uvicorn.Server(config)
        started = threading.Event()

        async def serve() -> None:
            started.set()
            await server.serve([listener])

        thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        thread.start()
        assert started.wait(60)
        try:
            yield Server(listener.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join(60)
            service.close()
            assert not thread.is_alive()


class Gate:
    """Holds the model between two steps, or makes it fail: what a test needs to see a server that is busy."""

    def __init__(self, served: Served) -> None:
        self._changed = threading.Condition()
        self._allowed: int | None = None
        self._waiting = False
        self._failures = 0
        self._hook = served.model.register_forward_pre_hook(self._pass)

    def _pass(self, *_: object) -> None:
        with self._changed:
            self._waiting = True
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._allowed is None or self._allowed > 0, 60)
            self._waiting = False
            if self._allowed is not None:
                self._allowed -= 1
            if self._failures:
                self._failures -= 1
                raise RuntimeError("the model fails, as the test asked")

    def allow(self, steps: int | None) -> None:
        """Let so many through and no more; None: all."""
        with self._changed:
            self._allowed = steps
            self._changed.notify_all()

    def wait(self) -> None:
        """Until a step stands before it."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._waiting and self._allowed == 0, 60)

    def fail(self, times: int) -> None:
        """Let the next steps fail."""
        self._failures = times

    def remove(self) -> None:
        """As if it had never been."""
        self.allow(None)
        self._hook.remove()
