"""The lines of the doctor: what was looked at, how it is, and what to do.

A check that cannot be made is not a check that passed: whatever it raises becomes a line too, a warning if these
credentials may not look, a failure otherwise.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from k8s.errors import ClientError, Forbidden
from k8s.wording import plain

OK, WARNING, FAILED = "ok", "warning", "FAILED"


@dataclass(frozen=True)
class Finding:
    """One line."""

    level: str
    subject: str
    seen: str
    advice: str = ""

    def __str__(self) -> str:
        line = f"{self.level:8} {self.subject}: {self.seen}"
        return f"{line}\n         -> {self.advice}" if self.advice else line


Check = Callable[[], Iterator[Finding]]


def ok(subject: str, seen: str) -> Finding:
    return Finding(OK, subject, seen)


def warning(subject: str, seen: str, advice: str) -> Finding:
    return Finding(WARNING, subject, seen, advice)


def failed(subject: str, seen: str, advice: str) -> Finding:
    return Finding(FAILED, subject, seen, advice)


def carry_out(subject: str, check: Check) -> Iterator[Finding]:
    """The findings of a check, and one more if it could not be finished."""
    try:
        yield from check()
    except Forbidden as error:
        yield warning(subject, f"not checked: {plain(error)}", "ask somebody with more rights to run the doctor")
    except ClientError as error:
        yield failed(subject, plain(error), "see the message")
