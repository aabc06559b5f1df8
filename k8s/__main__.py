"""The command line: `python -m k8s COMMAND`.

Exit codes: 0 done, 1 failed, 2 wrong command line, recipe or environment, 3 interrupted (what runs in the cluster goes
on). Each command imports what it needs and no more: the status sidecar is one of them.
"""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from k8s.errors import ClientError, Stopped
from k8s.options import parser
from k8s.waiting import SystemClock

CANCEL_SECONDS = 600.0


def _say(text: str) -> None:
    print(text, flush=True)


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _submit(options: argparse.Namespace) -> int:
    from k8s import jobs, names, recipe, release, tools
    from k8s.connection import connect
    from k8s.rayjob import Limits

    if options.name is not None:
        names.checked(options.name)
    resolved = recipe.resolve(options.recipe, options.overrides, tools.run)
    api = connect(options.context, options.namespace).api
    limits = Limits(options.retries, options.deadline_seconds, options.ttl_seconds)
    name = jobs.submit(api, release.find(api, options.release), resolved, limits, options.name)
    _say(f"RayJob {api.namespace}/{name}: submitted, run {resolved.run_name}")
    return _next(options, name)


def _next(options: argparse.Namespace, name: str) -> int:
    """What can be done with a run that was started; with --wait, do it."""
    from k8s.connection import connect
    from k8s.follow import follow

    api = connect(options.context, options.namespace).api
    context = f" --context {options.context}" if options.context else ""
    for command in (f"status {name}", f"logs -f {name}", f"cancel {name}", f"dashboard {name}"):
        _say(f"  python -m k8s {command} --namespace {api.namespace}{context}")
    if options.wait:
        try:
            follow(api, name, _say, SystemClock(), options.start_timeout_seconds)
        except KeyboardInterrupt:
            raise Stopped(f"no longer watching; RayJob {api.namespace}/{name} goes on") from None
    return 0


def _list(options: argparse.Namespace) -> int:
    from k8s import jobs
    from k8s.connection import connect

    api = connect(options.context, options.namespace).api
    _say("\n".join(jobs.runs(api, SystemClock().wall(), options.release)))
    return 0


def _status(options: argparse.Namespace) -> int:
    from k8s import jobs
    from k8s.connection import connect

    api = connect(options.context, options.namespace).api
    _say("\n".join(jobs.status(api, options.name, SystemClock().wall())))
    return 0


def _logs(options: argparse.Namespace) -> int:
    from k8s import jobs, logs
    from k8s.connection import connect

    cluster = connect(options.context, options.namespace)
    jobs.load_run(cluster.api, options.name)
    if options.follow:
        logs.follow(cluster, options.name, _say, _note, SystemClock())
    else:
        logs.show(cluster, options.name, _say, _note)
    return 0


def _cancel(options: argparse.Namespace) -> int:
    from k8s import jobs
    from k8s.connection import connect
    from k8s.follow import wait_until
    from k8s.rayjob import CANCELLED, CANCELLING

    api = connect(options.context, options.namespace).api
    _say(jobs.cancel(api, options.name))
    if options.wait and jobs.load_run(api, options.name).state == CANCELLING:
        _say(wait_until(api, options.name, CANCELLED, CANCEL_SECONDS, SystemClock()).sentence)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from k8s import jobs
    from k8s.connection import connect

    api = connect(options.context, options.namespace).api
    name = jobs.resume(api, options.name)
    again = "continues" if name == options.name else f"is continued by RayJob {api.namespace}/{name}"
    _say(f"RayJob {api.namespace}/{options.name} {again}")
    return _next(options, name)


def _dashboard(options: argparse.Namespace) -> int:
    from k8s import dashboard, release, tools
    from k8s.connection import connect

    tools.require("kubectl")
    api = connect(options.context, options.namespace).api
    chosen = release.find(api, options.release) if options.name is None else None
    cluster = dashboard.cluster_name(api, chosen, options.name)
    secret = dashboard.token_secret(api, cluster)
    port = dashboard.free_port(options.port)

    def opened() -> None:
        _say("\n".join(dashboard.hints(options.context, api.namespace, port, secret)))
        if options.show_token:
            _say(f"token: {dashboard.token(api, secret)}")

    try:
        dashboard.forward(api, options.context, cluster, port, opened, _note, SystemClock())
    except KeyboardInterrupt:
        _note("ended")
    return 0


def _score(options: argparse.Namespace) -> int:
    from k8s import release, score, tools
    from k8s.connection import connect

    tools.require("kubectl")
    completions = score.read(options.completions)
    problems = score.read(options.problems) if options.problems else None
    api = connect(options.context, options.namespace).api
    chosen = release.find(api, options.release)
    arguments = [f"--{name.replace('_', '-')}" for name in ("allow_missing", "allow_weak") if getattr(options, name)]
    results, summary = score.score(
        api, options.context, chosen, completions, arguments, tools.run, SystemClock(), problems=problems
    )
    if options.results:
        options.results.write_text(results)
    _say(summary)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from k8s.connection import connect
    from k8s.doctor import examine
    from k8s.findings import FAILED

    code = 0
    for finding in examine(connect(options.context, options.namespace), options.release, SystemClock()):
        _say(str(finding))
        code = max(code, int(finding.level == FAILED))
    return code


def _cluster(options: argparse.Namespace) -> int:
    from k8s import tools
    from k8s.kind import LocalCluster, Settings

    cluster = LocalCluster(Settings.read(os.environ), tools.run, _say, SystemClock())
    if options.action == "status":
        return 0 if cluster.status() else 1
    (cluster.up if options.action == "up" else cluster.down)()
    return 0


def _annotate(options: argparse.Namespace) -> int:
    from k8s.annotate import annotate
    from k8s.connection import connect

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return annotate(connect(options.context, options.namespace).api, options.file, options.rayjob)


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "submit": _submit,
    "list": _list,
    "status": _status,
    "logs": _logs,
    "cancel": _cancel,
    "resume": _resume,
    "dashboard": _dashboard,
    "score": _score,
    "doctor": _doctor,
    "cluster": _cluster,
    "annotate": _annotate,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; every way it can end becomes one line and an exit code."""
    options = parser().parse_args(arguments)
    try:
        return COMMANDS[options.command](options)
    except (ClientError, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):
            error = Stopped("by a signal; what runs in the cluster goes on")
        _note(f"{error.kind}: {error}")
        return error.exit_code
    except BrokenPipeError:
        # `... | head` has what it wanted; nothing may be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:  # noqa: BLE001 - the last line of defence for a person at a terminal
        if options.debug:
            traceback.print_exc()
        text = " ".join(str(error).split())[:500]
        _note(f"error: unexpected {type(error).__name__}: {text}; --debug shows where")
        return 1


def _run() -> NoReturn:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())


if __name__ == "__main__":
    _run()
