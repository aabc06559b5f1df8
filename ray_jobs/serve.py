"""A model behind OpenAI's API, by Ray Serve: no stage, it runs until it is told to end.

    python -m ray_jobs.serve --config FILE [--checkpoint WHERE] [--host ADDRESS] [--port N] [--api-keys FILE]

It listens on loopback unless told otherwise. SIGINT or SIGTERM ends it: what was accepted is answered first, for
`serve.drain_seconds` at most. `application` is what a RayService names as its `import_path`.
"""

import argparse
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from codeparrot.api_keys import ApiKeys
from codeparrot.completion_plan import Served
from codeparrot.config import Recipe
from codeparrot.errors import ClusterError, ConfigError
from codeparrot.pretrained import load_pretrained
from codeparrot.settings import validate
from codeparrot.storage import open_storage
from ray_jobs.cluster import connect, ray_session, unwrapped
from ray_jobs.interrupt import SIGNALS
from ray_jobs.progress import configure_logging
from ray_jobs.stage import guarded, shared_options, state_folder
from ray_jobs.telemetry import export_serving

if TYPE_CHECKING:
    import transformers
    from fastapi import FastAPI
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

logger = logging.getLogger(__name__)

APPLICATION = "codeparrot"
LOOPBACK = "127.0.0.1"
PORT = 8000
SPARE_REQUESTS = 1000
"""Ray Serve passes on as many requests more than there is room for, so that the refusals are those of the API."""
WATCH_SECONDS = 0.5
SPARE_SECONDS = 10.0
"""For replicas to end, beyond what they may drain."""
DRAIN_CALLS = 50


class Arguments(BaseModel):
    """What a deployment is told: plain values, as they stand in the configuration of a RayService."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: dict[str, Any]
    checkpoint: str | None = None
    """None: the recipe's run."""
    api_keys: str | None = None
    """A file on every node; None: everybody may ask."""
    loopback: bool = False
    """Whether requests come from this machine alone."""


class Replica:
    """One loaded model, and its API."""

    def __init__(self, arguments: Arguments) -> None:
        from ray import serve

        from codeparrot.serving import CompletionService
        from codeparrot.serving_metrics import ServingMetrics

        _keep_replica_port_to_this_machine()
        _log_to_ray()
        recipe = validate(Recipe, arguments.recipe, "the recipe")
        self._loopback = arguments.loopback
        self._keys = ApiKeys(arguments.api_keys) if arguments.api_keys else None
        metrics = ServingMetrics()
        self._service = CompletionService(load_served(recipe, arguments.checkpoint), recipe.serve, metrics)
        export_serving(metrics, serve.get_replica_context().replica_tag)

    def __serve_build_asgi_app__(self) -> "FastAPI":
        from ray_jobs.http_api import build_app

        return build_app(self._service, self._keys, loopback=self._loopback)

    def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that fails."""
        if self._service.broken:
            raise RuntimeError("the model fails again and again")

    def begin_to_end(self) -> int:
        """Accept nothing more; returns the process, by which replicas are told apart."""
        self._service.end()
        return os.getpid()


def load_served(recipe: Recipe, checkpoint: str | None) -> Served:
    """The model to serve. Raises CheckpointError."""
    from codeparrot.vocabulary import Vocabulary

    where = checkpoint or recipe.run_name
    model, tokenizer, source = load_pretrained(where, open_storage(recipe.storage.uri))
    name = recipe.serve.model_name or where.rstrip("/").rpartition("/")[2]
    logger.info("serving %s as %s", source, name)
    return Served(model, Vocabulary(tokenizer), name, fingerprint(model), int(time.time()))


def fingerprint(model: "transformers.PreTrainedModel") -> str:
    """Changes when the same seed may give other completions: with the weights, torch, the kind of device."""
    import torch

    parts = [torch.__version__, model.device.type, str(model.dtype)]
    parts += [f"{name} {parameter.double().sum().item()!r}" for name, parameter in model.named_parameters()]
    return f"fp_{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def application(arguments: Arguments) -> "Application":
    """The application of Ray Serve."""
    from ray import serve

    settings = validate(Recipe, arguments.recipe, "the recipe").serve
    resources = dict(settings.resources_per_replica)
    actor: dict[str, Any] = {"num_cpus": resources.pop("CPU", 0), "num_gpus": resources.pop("GPU", 0)}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name=APPLICATION,
        num_replicas=settings.num_replicas,
        ray_actor_options={**actor, "resources": resources},
        max_ongoing_requests=settings.max_batch_size + settings.max_queued + SPARE_REQUESTS,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        graceful_shutdown_wait_loop_s=WATCH_SECONDS,
    )
    return deployment.bind(arguments)


def _keep_replica_port_to_this_machine() -> None:
    """Bind the port that Ray Serve opens in every replica to loopback, rather than to all interfaces.

    It is for calls between deployments by gRPC, which are off by default and not made here. It asks for no token, and
    what is sent there is unpickled: who reaches it can run code. Called in a replica, before the port is opened.
    """
    from ray.serve._private import replica

    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, address: bind(server, address.replace("[::]", LOOPBACK))


def _log_to_ray() -> None:
    """What this project logs in a replica goes where Ray Serve logs."""
    for name in ("codeparrot", "ray_jobs"):
        ours = logging.getLogger(name)
        ours.handlers, ours.propagate = logging.getLogger("ray.serve").handlers, False
        ours.setLevel(logging.INFO)


def parse(name: str, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = shared_options(name)
    parser.description = "Serve a model by OpenAI's API until interrupted."
    where = "a run, a checkpoint, a folder, or a name of the hub; default: the recipe's run"
    parser.add_argument("--checkpoint", metavar="WHERE", help=where)
    parser.add_argument("--host", default=LOOPBACK, help=f"the address to listen on; default: {LOOPBACK}")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}")
    parser.add_argument("--api-keys", metavar="FILE", help="keys that let in, one a line; without it everybody may ask")
    return parser.parse_args(arguments)


def main() -> int:
    """Serve until a signal; the exit code."""
    options = parse("ray_jobs.serve")
    configure_logging(options.debug)
    return guarded(options, lambda recipe: serve_until_told(recipe, options))


def serve_until_told(recipe: Recipe, options: argparse.Namespace) -> None:
    """Load, serve, and end in order. Raises CodeParrotError if there is nothing to serve."""
    keys = str(Path(options.api_keys).absolute()) if options.api_keys else None
    if keys:
        ApiKeys(keys)  # what is wrong with it is said here, not in the log of a replica
    _require_free(options.host, options.port)
    loopback = options.host in (LOOPBACK, "localhost", "::1")
    if not loopback and not keys:
        logger.warning("%s without --api-keys: everybody who reaches this port may use the model", options.host)
    storage = open_storage(recipe.storage.uri)
    storage.check()
    arguments = Arguments(
        recipe=recipe.model_dump(mode="json"), checkpoint=options.checkpoint, api_keys=keys, loopback=loopback
    )
    logs = state_folder() / "serve"
    with ray_session():
        connect()
        with (
            _running(arguments, recipe.serve.drain_seconds, options.host, options.port, str(logs)) as handle,
            _told() as told,
        ):
            host = f"[{options.host}]" if ":" in options.host else options.host
            logger.info("ready: http://%s:%d, log in %s; Ctrl-C ends it", host, options.port, logs)
            while not told.wait(WATCH_SECONDS):
                pass
            logger.info("ending: what was accepted is answered first")
            _refuse_more(handle, recipe.serve.num_replicas)


@contextmanager
def _running(
    arguments: Arguments, drain_seconds: float, host: str, port: int, logs: str
) -> "Iterator[DeploymentHandle[Any]]":
    """The application, until the end of the block, and until what it has accepted is answered."""
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    options = {"host": host, "port": port}
    logging_config = {"logs_dir": logs, "enable_access_log": False}
    serve.start(proxy_location="HeadOnly", http_options=options, logging_config=logging_config)
    try:
        with unwrapped():
            try:
                handle = serve.run(application(arguments), name=APPLICATION, logging_config=logging_config)
            except RuntimeError as error:
                raise ClusterError(f"the model could not be loaded: {_last_line(error)}") from error
            yield handle
        serve.delete(APPLICATION, _blocking=False)  # which would wait for a minute at most, whatever is drained
        _wait_until_gone(drain_seconds + SPARE_SECONDS)
    finally:
        if os.environ.get("RAY_ADDRESS"):  # a Ray of our own ends anyway, with less noise
            serve.shutdown()


def _wait_until_gone(seconds: float) -> None:
    """Until Ray Serve has ended the application; after that long, a line in the log."""
    from ray import serve

    deadline = time.monotonic() + seconds
    while APPLICATION in serve.status().applications:
        if time.monotonic() >= deadline:
            logger.warning("the replicas have not ended in %g s; what they had accepted is given up", seconds)
            return
        time.sleep(WATCH_SECONDS)


@contextmanager
def _told() -> Iterator[threading.Event]:
    """An event that the first signal sets; further ones change nothing."""
    told = threading.Event()
    previous = {number: signal.signal(number, lambda *_: told.set()) for number in SIGNALS}
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _refuse_more(handle: "DeploymentHandle[Any]", num_replicas: int) -> None:
    """Have every replica say that the server ends, until it does: a call reaches any of them."""
    found: set[int] = set()
    for _ in range(DRAIN_CALLS * num_replicas):
        found.add(handle.begin_to_end.remote().result())
        if len(found) >= num_replicas:
            break


def _require_free(host: str, port: int) -> None:
    """Raise ConfigError if the port cannot be listened on; Ray Serve would try for long."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error


def _last_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[-1].strip()


if __name__ == "__main__":
    # By its name, since what is defined in `__main__` cannot be pickled for a replica.
    sys.exit(import_module("ray_jobs.serve").main())
