"""The programs of others: docker, kind, kubectl, helm.

Found before anything starts, all missing ones in one message, each with what it is for. `Run` is what the rest of the
package sees: tests give a function of their own, and need none of the programs.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from k8s.errors import MissingTool, ToolFailed

PURPOSE = {
    "docker": "runs the nodes of the local cluster",
    "kind": "makes the local cluster",
    "kubectl": "installs manifests, and forwards ports",
    "helm": "installs the operator and the chart",
}
DEFAULT_TIMEOUT_SECONDS = 120.0
MAX_SHOWN_LINES = 12


@dataclass(frozen=True)
class Done:
    """A program that ended."""

    code: int
    out: str
    err: str

    @property
    def tail(self) -> str:
        """The last lines it printed, for a message."""
        lines = [line for line in (self.err.strip() or self.out.strip()).splitlines() if line.strip()]
        return "\n  ".join(lines[-MAX_SHOWN_LINES:]) or "(it printed nothing)"


class Run(Protocol):
    """Runs a program to its end."""

    def __call__(
        self,
        command: Sequence[str],
        *,
        text: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> Done:
        """`text` goes to its standard input, `environment` is added to this process's.

        Raises MissingTool, ToolFailed (it did not end in time).
        """


def run(
    command: Sequence[str],
    *,
    text: str | None = None,
    timeout: float = DEFAULT_TIMEOUT_SECONDS,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program of this machine; the program must not ask anything of a terminal."""
    try:
        done = subprocess.run(  # noqa: S603 - the programs of PURPOSE, no shell
            list(command),
            input=text if text is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env={**os.environ, **environment} if environment else None,
        )
    except FileNotFoundError as error:
        raise MissingTool(_missing([command[0]])) from error
    except subprocess.TimeoutExpired as error:
        raise ToolFailed(f"`{' '.join(command)}` did not end within {timeout:.0f} s") from error
    return Done(done.returncode, done.stdout, done.stderr)


def succeed(
    run: Run, command: Sequence[str], *, text: str | None = None, timeout: float = DEFAULT_TIMEOUT_SECONDS
) -> str:
    """Run a program that must succeed, and return what it printed. Raises ToolFailed with its last lines."""
    done = run(command, text=text, timeout=timeout)
    if done.code != 0:
        raise ToolFailed(f"`{' '.join(command)}` ended with exit code {done.code}:\n  {done.tail}")
    return done.out


def require(*names: str, path: str | None = None) -> None:
    """Raises MissingTool, naming all that are not installed and what each is for."""
    missing = [name for name in names if shutil.which(name, path=path) is None]
    if missing:
        raise MissingTool(_missing(missing))


def _missing(names: Sequence[str]) -> str:
    return "\n  ".join(
        ["not found on PATH; install it and run the command again:"]
        + [f"{name}: {PURPOSE.get(name, 'needed here')}" for name in names]
    )
