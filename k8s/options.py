"""The options of all commands."""

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="python -m k8s", description="Runs on Kubernetes.", allow_abbrev=False)
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *, cluster: bool = True) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.add_argument("--debug", action="store_true", help="show tracebacks")
        if cluster:
            one.add_argument("--namespace", metavar="NS", help="default: that of the kubeconfig's context")
            one.add_argument("--context", metavar="CTX", help="context of the kubeconfig; default: the current one")
        return one

    one = add("submit", "start a run in a release of the chart")
    one.add_argument("recipe", metavar="RECIPE", help="a YAML file, as on a laptop")
    one.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="override one setting; repeatable",
    )
    one.add_argument("--release", help="the release of the chart; default: the only one in the namespace")
    one.add_argument("--name", help="of the RayJob; default: the run's name and a suffix")
    one.add_argument(
        "--retries", type=_count, metavar="N", help="new attempts after a failure, each from the newest checkpoint"
    )
    one.add_argument("--deadline-seconds", type=_positive, metavar="N", help="end it after so long")
    one.add_argument("--ttl-seconds", type=_count, metavar="N", help="keep its pods so long after its end")
    _add_wait(one)
    one = add("list", "the runs of a namespace")
    one.add_argument("--release", help="only those of this release")
    one = add("status", "all about one run, in plain words")
    one.add_argument("name", metavar="NAME")
    one = add("logs", "the driver's log")
    one.add_argument("name", metavar="NAME")
    one.add_argument("-f", "--follow", action="store_true", help="until it ends")
    one = add("cancel", "stop a run after a last checkpoint; `resume` continues it")
    one.add_argument("name", metavar="NAME")
    one.add_argument("--wait", action="store_true", help="until its pods are gone")
    one = add("resume", "continue a run that was cancelled or has failed")
    one.add_argument("name", metavar="NAME")
    _add_wait(one)
    one = add("dashboard", "forward the dashboard of a release, or of a run, to this machine")
    one.add_argument("name", nargs="?", metavar="NAME", help="a run; default: the release's standing cluster")
    one.add_argument("--release")
    one.add_argument("--port", type=_count, default=8265, help="on loopback; 0: any (default: 8265)")
    one.add_argument("--show-token", action="store_true", help="print the token, and not only how to get it")
    one = add("score", "score completions of HumanEval in a pod without network or credentials")
    one.add_argument("completions", type=Path, metavar="FILE", help="JSON lines with task_id and completion")
    one.add_argument("--problems", type=Path, metavar="FILE", help="JSON lines like HumanEval's, which is the default")
    one.add_argument("--results", type=Path, metavar="FILE", help="write what became of each completion")
    one.add_argument("--release")
    one.add_argument("--allow-missing", action="store_true", help="leave out problems without completions")
    one.add_argument("--allow-weak", action="store_true", help="also on nodes that cannot hold programs in the pod")
    one = add("doctor", "is everything there that a run needs?")
    one.add_argument("--release")
    one = add("cluster", "a Kubernetes cluster on this machine, by kind", cluster=False)
    one.add_argument("action", choices=("up", "down", "status"))
    one = add("annotate", "the status sidecar of a run: a status file becomes annotations")
    one.add_argument("--file", type=Path, required=True)
    one.add_argument("--rayjob", required=True, metavar="NAME")
    return top


def _add_wait(one: argparse.ArgumentParser) -> None:
    one.add_argument("--wait", action="store_true", help="follow it to its end, and end as it ends")
    one.add_argument(
        "--start-timeout-seconds", type=_positive, default=1800, metavar="N",
        help="with --wait: give up, but not the run, if it does not run after so long (default: 1800)",
    )  # fmt: skip


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 2**31 - 1:
        raise argparse.ArgumentTypeError(f"expected 0 or more, got {text}")
    return value


def _positive(text: str) -> int:
    value = _count(text)
    if value == 0:
        raise argparse.ArgumentTypeError("expected more than 0")
    return value
