"""Completions scored in a pod of their own, which has no network, no credentials and no token of the API server.

The pod is the chart's: it lies in ConfigMap F-score, with SCORE_NAME where its name belongs. A policy forbids it all
traffic, so what it gets and answers goes through `kubectl exec`, which comes from the node. It is deleted at the end,
however that comes, and ends by itself if this client cannot do so.
"""

import contextlib
import gzip
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from k8s import names
from k8s.api import CONFIG_MAP, POD, Api, Object
from k8s.errors import ClientError, Misuse, ReleaseError, RunError
from k8s.pods import explain, phase
from k8s.quantity import parse
from k8s.release import Release
from k8s.tools import Run
from k8s.waiting import Clock, wait_for

TEMPLATE_KEY = "pod.yaml"
PLACEHOLDER = "SCORE_NAME"
CONTAINER = "score"
PROBLEMS = "/tmp/problems.jsonl"  # noqa: S108 - of the pod, which has it for itself
START_SECONDS = 900.0
GZIP = b"\x1f\x8b"


def read(path: Path) -> str:
    """A file of completions or problems, also compressed by gzip. Raises Misuse."""
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if data.startswith(GZIP) else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Misuse(f"cannot read {path}: {reason}") from error


def score(
    api: Api,
    context: str | None,
    release: Release,
    completions: str,
    arguments: Sequence[str],
    run: Run,
    clock: Clock,
    make_name: Callable[[str], str] = names.unique,
    problems: str | None = None,
) -> tuple[str, str]:
    """(the result of every completion as JSON lines, pass@k as one JSON object). `arguments`: of codeparrot.score.

    `problems`: JSON lines; None: HumanEval's.

    Raises ReleaseError, WaitTimeout (the pod does not start), RunError (the scoring failed), ToolFailed.
    """
    pod = _pod(api, release, make_name(CONTAINER))
    name = str(pod["metadata"]["name"])
    api.create(POD, pod)
    try:
        _wait(api, name, clock)
        command = ["python", "-m", "codeparrot.score", "-", "--results", "-", "--json"]
        command += ["--num-workers", str(_num_cpus(pod)), *arguments]
        chosen = ["--context", context] if context else []
        where = ["--namespace", api.namespace, "exec", "--stdin", f"pod/{name}", "--container", CONTAINER]
        inside = partial(run, timeout=pod["spec"]["activeDeadlineSeconds"])
        steps = [(["cp", "/dev/stdin", PROBLEMS], problems)] if problems is not None else []
        steps.append((command + (["--problems", PROBLEMS] if steps else []), completions))
        for words, text in steps:
            done = inside(["kubectl", *chosen, *where, "--", *words], text=text)
            if done.code != 0:
                break
    finally:
        with contextlib.suppress(ClientError):
            api.delete(POD, name)
    if done.code != 0 or not done.out.strip():
        raise RunError(f"Pod {api.namespace}/{name}: scoring ended with exit code {done.code}:\n  {done.tail}")
    results, _, summary = done.out.strip().rpartition("\n")
    return f"{results}\n", summary


def _pod(api: Api, release: Release, name: str) -> Object:
    where = f"ConfigMap {api.namespace}/{release.fullname}-score"
    found = api.find(CONFIG_MAP, f"{release.fullname}-score")
    template = ((found or {}).get("data") or {}).get(TEMPLATE_KEY)
    if not template or PLACEHOLDER not in template:
        raise ReleaseError(f"{where}: expected key {TEMPLATE_KEY} with {PLACEHOLDER}; `helm upgrade` the release")
    try:
        pod: Any = yaml.safe_load(template.replace(PLACEHOLDER, name))
    except yaml.YAMLError as error:
        raise ReleaseError(f"{where}, key {TEMPLATE_KEY}: not YAML: {error}") from error
    return dict(pod)


def _wait(api: Api, name: str, clock: Clock) -> None:
    def describe(pod: Object | None) -> str:
        why = "; ".join(str(problem) for problem in explain([pod] if pod else [])) or "it is starting"
        return f"Pod {api.namespace}/{name}: expected it to run: {why}"

    pod = wait_for(
        lambda: api.get(POD, name),
        lambda each: phase(each) in ("Running", "Failed", "Succeeded"),
        *(START_SECONDS, describe, clock),
    )
    if phase(pod) != "Running":
        raise RunError(f"Pod {api.namespace}/{name} ended before it was used: {describe(pod)}")


def _num_cpus(pod: Object) -> int:
    """As its container may use."""
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    return max(1, int(parse(limits["cpu"])))
