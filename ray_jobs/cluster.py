"""Ray itself: connecting to it, room for workers, and work spread over it with Ray Data.

Ray Data moves descriptions of shards, not documents: a task reads its shard from the store, writes its result there
and returns a small summary. So memory stays flat, a killed worker costs its shard in flight only, and the bytes
written do not depend on how many workers there are (docs/decisions/0002).
"""

import logging
import os
import pickle
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from codeparrot.errors import ClusterError, CodeParrotError
from ray_jobs.interrupt import check, keeping_handlers
from ray_jobs.kept import Kept
from ray_jobs.progress import progress
from ray_jobs.worker_environment import DEFAULTS, runtime_environment

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

OBJECT_STORE_BYTES = 512 * 1024 * 1024  # of a local Ray: it carries summaries only
MIN_LOCAL_CPUS = 2
MAX_SHOWN_ERROR = 300
CONNECT_TIMEOUT_SECONDS = 10.0
SPREAD_PLACEMENT_SECONDS = 30.0
TEMPORARY_PREFIX = "codeparrot-ray-"
TRAIN_FOLDER = Path(tempfile.gettempdir()) / f"codeparrot-ray-train-{os.getuid()}"
"""Ray Train's own bookkeeping, which no run resumes from."""


_temporary: list[str] = []
"""The folder of the local Ray that this process started, if it did."""


@contextmanager
def ray_session() -> Iterator[None]:
    """A block at whose end Ray is left, if `connect` was called in it: a local Ray ends, a cluster goes on."""
    try:
        yield
    finally:
        if "ray" in sys.modules:
            import ray

            ray.shutdown()
        if _temporary and os.environ.get("RAY_AUTH_TOKEN_PATH", "").startswith(_temporary[-1]):
            del os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN_PATH"]
        while _temporary:
            shutil.rmtree(_temporary.pop(), ignore_errors=True)


def connect() -> None:
    """Connect to Ray unless this process is connected already.

    To the cluster that RAY_ADDRESS names (`ray job submit` sets it), else to a local Ray of our own, whose files lie
    in a temporary folder. Raises ClusterError.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = runtime_environment(local=not address)
    if address:
        _require_listener(address)
        options["address"] = address
    else:
        sweep()
        _temporary.append(tempfile.mkdtemp(prefix=f"{TEMPORARY_PREFIX}{os.getpid()}-"))
        _keep_to_this_user(Path(_temporary[-1]))
        options |= {
            "num_cpus": max(MIN_LOCAL_CPUS, os.cpu_count() or 1),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_temp_dir": _temporary[-1],
        }
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # they would have no runtime environment
        os.environ.setdefault("RAY_worker_register_timeout_seconds", "300")  # the first waits for the fork server
    import ray  # reads its settings from the environment once, so not before they are there

    try:
        with keeping_handlers():
            ray.init(**options)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        where = f"the cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        raise ClusterError(f"cannot use {where}: {str(error).strip().splitlines()[0]}") from error
    check()
    _silence()


def _require_listener(address: str) -> None:
    """Raise ClusterError at once if nothing listens at HOST:PORT; ray.init would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return  # `auto` and the like: Ray knows where
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise ClusterError(
            f"cannot use the cluster at RAY_ADDRESS={address}: {error.strerror or error}; start it or correct it"
        ) from error


def _keep_to_this_user(folder: Path) -> None:
    """Close the local Ray to other machines and users: loopback only, and a token in a private folder."""
    # The switch that Ray has for macOS and Windows, where a cluster of one node is all there is: every listener,
    # that of metrics included, then stays on loopback. Without it they are on all interfaces.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    if "RAY_AUTH_MODE" not in os.environ:
        path = folder / "auth_token"
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(path))


def _silence() -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def sweep() -> None:
    """Remove the temporary folders of local Rays whose driver is dead."""
    for folder in Path(tempfile.gettempdir()).glob(f"{TEMPORARY_PREFIX}[0-9]*"):
        pid = folder.name.removeprefix(TEMPORARY_PREFIX).split("-")[0]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except (ValueError, PermissionError):
            continue


def spread(
    stage: str,
    items: Sequence[Item],
    work: Callable[[Item], Result],
    unit: str = "shards",
    *,
    workers: int | None = None,
    resources: Mapping[str, float] | None = None,
    kept: Kept | None = None,
) -> list[Result]:
    """`[work(item) for item in items]`, in this order, by Ray Data on all of the cluster.

    `work` must be a module's function (or a partial of one); it and its results must be picklable and small. At most
    `workers` tasks run at once; Ray reuses their processes, so what a process caches in a module serves the next task
    too. An error of ours in a task is raised here as itself. With `kept`, results stay in the store, and those that are
    there from before are taken: the items must be the same ones again.
    """
    results: dict[int, Result] = kept.read(stage) if kept is not None else {}
    if results:
        logger.info("%-16s %d of %d %s are done already", stage, len(results), len(items), unit)
    rows = [{"index": index, "item": pickle.dumps(item)} for index, item in enumerate(items) if index not in results]
    if not rows:
        return [results[index] for index in range(len(items))]
    connect()
    import ray

    keep = partial(kept.write, stage) if kept is not None else None
    options: dict[str, Any] = {}
    needed = dict(resources or {"CPU": 1})
    require_room(1, needed, SPREAD_PLACEMENT_SECONDS, "lower resources_per_worker of this stage")
    options["num_cpus"] = needed.pop("CPU", 0)
    if "GPU" in needed:
        options["num_gpus"] = needed.pop("GPU")
    if needed:
        options["resources"] = needed
    with unwrapped(), progress(stage, len(items), unit) as advance:
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        done = dataset.map(_apply, fn_kwargs={"work": work, "keep": keep}, concurrency=workers, **options)
        for row in done.iter_rows():
            for warning in row["warnings"]:
                warn_once(warning)
            result = pickle.loads(row["result"])  # noqa: S301 - made by _apply
            if isinstance(result, CodeParrotError):
                raise result
            results[row["index"]] = result
            check()
            advance(len(results))
    return [results[index] for index in range(len(items))]


def _apply(row: dict[str, Any], work: Callable[[Any], Any], keep: Callable[[int, Any], bytes] | None) -> dict[str, Any]:
    warnings: list[str] = []
    with warnings_to(warnings.append):
        try:
            result = work(pickle.loads(row["item"]))  # noqa: S301 - made by spread
            pickled = pickle.dumps(result) if keep is None else keep(row["index"], result)
        except CodeParrotError as error:  # as a value, since Ray Data would lose it among errors of its own
            pickled = pickle.dumps(error)
    return {"index": row["index"], "result": pickled, "warnings": warnings}


class _Forward(logging.Handler):
    def __init__(self, told: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._told = told

    def emit(self, record: logging.LogRecord) -> None:
        self._told(record.getMessage())


@contextmanager
def warnings_to(told: Callable[[str], object]) -> Iterator[None]:
    """Hand what this project warns of in a worker to `told`: a worker's own log is seen by nobody."""
    handler = _Forward(told)
    ours = logging.getLogger("codeparrot")
    ours.addHandler(handler)
    try:
        yield
    finally:
        ours.removeHandler(handler)


_warned: set[str] = set()


def warn_once(message: str) -> None:
    """Show a warning that came from a worker, unless another worker had the same."""
    if message not in _warned:
        _warned.add(message)
        logger.warning("%s", message)


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the CodeParrotError that hides inside an error of Ray; turn others into a ClusterError."""
    import ray.exceptions

    try:
        yield
    except Exception as error:
        ours = find_error(error)
        if ours is not None:
            raise ours from error
        if isinstance(error, ray.exceptions.RayError) or type(error).__module__.startswith("ray."):
            raise ClusterError(f"Ray gave up: {_gist(error)}; run again to continue, --debug shows more") from error
        raise


def find_error(error: BaseException) -> CodeParrotError | None:
    """The first error of ours among an error, its causes, and the failures of a worker group."""
    queue: list[BaseException | None] = [error]
    seen: set[int] = set()
    while queue:
        current = queue.pop(0)
        if isinstance(current, CodeParrotError) and not hasattr(current, "as_instanceof_cause"):
            return current
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            failures = getattr(current, "worker_failures", {})
            inner = (getattr(current, name, None) for name in ("cause", "controller_failure", "_base_exc", "__cause__"))
            queue += [*failures.values(), *inner]
    return None


def _gist(error: BaseException) -> str:
    """The line of an error of Ray that says what happened: the last of its first traceback."""
    lines = [line.strip() for line in str(error).strip().split("\n\n")[0].splitlines()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"[:MAX_SHOWN_ERROR]


def require_room(num_workers: int, resources: Mapping[str, float], timeout_seconds: float, way_out: str) -> None:
    """Wait until the cluster can place this many workers at once. Raises ClusterError that says what is missing."""
    import ray
    from ray._private.state import available_resources_per_node

    deadline = time.monotonic() + timeout_seconds
    told = False
    while True:
        nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        free = available_resources_per_node()
        room = sum(_workers_on(free.get(node, {}), resources, num_workers) for node in nodes)
        if room >= num_workers:
            return
        if time.monotonic() >= deadline:
            break
        if not told:
            logger.info("waiting up to %.0f s for room for %d workers (now %d)", timeout_seconds, num_workers, room)
            told = True
        time.sleep(0.5)
    wanted = _resources(resources)
    have = "; ".join(_resources({name: node.get(name, 0) for name in resources}) for node in nodes.values())
    idle = sum(_workers_on(node, resources, num_workers) for node in nodes.values())
    busy = f" ({idle} if nothing else ran there)" if idle > room else ""
    raise ClusterError(
        f"the cluster has room for {room} of {num_workers} workers{busy}: each needs {wanted}, its {len(nodes)} nodes "
        f"have {have or 'nothing'}; add nodes, or {way_out}"
    )


def _workers_on(node: Mapping[str, float], resources: Mapping[str, float], most: int) -> int:
    counts = [int(node.get(name, 0) / amount + 1e-9) for name, amount in resources.items() if amount > 0]
    return min([*counts, most])


def _resources(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
