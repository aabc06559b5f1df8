"""What Ray's workers get from us: settings, and the modules with which they begin."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from ray_jobs import worker_fork

JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
MODULES = ("ray.data",)
"""What every worker of a job needs, and takes a second or more to import."""
MODEL_MODULES = (*MODULES, "ray.train.torch", "transformers.models.gpt2.modeling_gpt2", "ray_jobs.train_worker")
"""What a rank needs and takes seconds to import, and so does Ray Train's controller."""
FORWARDED = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_PROFILE",
    "AWS_CA_BUNDLE",
    "CODEPARROT_CACHE",
    "CODEPARROT_CACHE_BYTES",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "HF_TOKEN_PATH",
)
"""Where the store and the hub are and where their credentials lie, for workers of a cluster that was started without
them. Keys and tokens themselves are never sent through Ray."""
DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "600",  # image pulls take longer than the default of 60
    # After a failure; the ranks that are left are killed next anyway. The default of 30 waits for the loss of a node
    # to be certain.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "2",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",  # Ray Train's own setting for its controller: one server forks all
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Defaults for every process of ours: no network but the store's, no noise, no needless waits."""


def forked(*modules: str) -> dict[str, str]:
    """What a runtime environment says so that workers are forks that have these modules (`ray_jobs.worker_fork`).

    Nothing on other systems than Linux, and if `ray job submit` was given a `py_executable` of its own. A node that has
    not that file at the same place starts workers by the `python` of its PATH.
    """
    if sys.platform != "linux" or "py_executable" in _submitted_with():
        return {}
    fork = shlex.join([sys.executable, "-S", worker_fork.FILE, ",".join(modules)])
    script = f'test -e {shlex.quote(worker_fork.FILE)} && exec {fork} "$@"; exec python "$@"'
    return {"py_executable": shlex.join(["sh", "-c", script, "sh"])}


def runtime_environment(*, local: bool) -> dict[str, Any]:
    """That of a job: of a local Ray, whose processes have this environment anyway, or of a cluster's.

    What `ray job submit` was given comes first; Ray refuses to hear of a setting twice.
    """
    if local:
        return {**forked(*MODULES)}
    names = [*DEFAULTS, *(FORWARDED if JOB_CONFIG not in os.environ else ())]
    theirs = _submitted_with().get("env_vars", {})
    ours = {name: os.environ[name] for name in names if name in os.environ and name not in theirs}
    return {**forked(*MODULES), "env_vars": ours}


def _submitted_with() -> Mapping[str, Any]:
    """The runtime environment that `ray job submit` was given."""
    return json.loads(os.environ.get(JOB_CONFIG, "{}")).get("runtime_env") or {}
