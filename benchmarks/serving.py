"""A model of the size of the tiny recipe, behind the real HTTP server in a thread."""

import asyncio
import contextlib
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from benchmarks.code import documents
from codeparrot.completion_plan import Served, ServeSettings
from codeparrot.model import ModelSettings, build_model, model_config
from codeparrot.serving import CompletionService
from codeparrot.serving_metrics import ServingMetrics
from codeparrot.tokenizer import tokenizer_files, train_tokenizer
from codeparrot.vocabulary import Vocabulary
from ray_jobs.http_api import build_app

VOCAB_SIZE = 8192
MAX_SEQ_LEN = 256
TRAINING_BYTES = 8_000_000
MODEL = "bench"


def served_model(trial: bool) -> Served:
    """As it is initialised: what a token costs does not depend on what the model has learned."""
    from transformers import AutoTokenizer

    vocab_size = 1024 if trial else VOCAB_SIZE
    texts = [document.content.encode() for document in documents(TRAINING_BYTES // (8 if trial else 1))]
    with tempfile.TemporaryDirectory() as folder:
        for name, data in tokenizer_files(train_tokenizer(texts, vocab_size), MAX_SEQ_LEN).items():
            (Path(folder) / name).write_bytes(data)
        vocabulary = Vocabulary(AutoTokenizer.from_pretrained(folder))
    settings = ModelSettings(n_layer=4, n_head=4, n_embd=64 if trial else 192)
    config = model_config(settings, vocab_size=vocab_size, max_seq_len=MAX_SEQ_LEN, eos_token_id=0)
    return Served(build_model(config, seed=0).eval(), vocabulary, MODEL, "fp_bench", 0)


@contextlib.contextmanager
def server(served: Served, *, max_batch_size: int) -> Iterator[str]:
    """The address of a server of this model."""
    service = CompletionService(served, ServeSettings(max_batch_size=max_batch_size), ServingMetrics())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(build_app(service), log_config=None, lifespan="off", access_log=False)
        running = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(running.serve([listener])))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            running.should_exit = True
            thread.join()
            service.close()
