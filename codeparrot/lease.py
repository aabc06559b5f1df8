"""A lease: of all processes that would write an output, one may.

    runs/tiny/lease.json    {"owner": ..., "sequence": 7, "length_seconds": 15, "released": false, ...}

It is taken and renewed by conditional writes, so one of several processes wins. No clock is compared with another
machine's: a lease is stale when whoever wants it has watched it unchanged for its whole length, or when its owner is
a process of this machine that has ended. A store that does not answer costs nobody the lease, since nobody else can
take it meanwhile.

`sequence` grows with every holder. It is a fencing token (Kleppmann, "How to do distributed locking", 2016): what
attempts write lies in folders named by it, and they remove only what has a lower one, so that a holder that was
stopped and has lost its lease without knowing can do no harm.
"""

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from codeparrot.errors import LeaseHeld, LeaseLost, ObjectNotFound, PreconditionFailed, StorageError
from codeparrot.storage import Storage

logger = logging.getLogger(__name__)

LEASE = "lease.json"
LENGTH_SECONDS = 15.0
WATCH_SECONDS = 0.5


class Lease:
    """The right to write under one prefix."""

    def __init__(self, storage: Storage, prefix: str, length_seconds: float = LENGTH_SECONDS) -> None:
        self._storage = storage
        self._prefix = prefix
        self._path = f"{prefix}/{LEASE}"
        self._length_seconds = length_seconds
        self._tag = ""
        self._nonce = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._lost: LeaseLost | None = None
        self.sequence = 0
        """Of this holder; higher than that of every holder before. 0: not held."""

    def acquire(self) -> None:
        """Take the lease, waiting for a holder that may be dead. Raises LeaseHeld if it is alive."""
        watched, since = "", time.monotonic()
        while True:
            found = self._read()
            if found is None:
                if self._put({"sequence": 1}, None):
                    return
                continue
            value, tag = found
            if watched and tag != watched and not value["released"]:
                raise LeaseHeld(self._held_by(value))
            if tag != watched:
                watched, since = tag, time.monotonic()
            idle = time.monotonic() - since
            if value["released"] or _has_ended(value["owner"]) or idle >= value["length_seconds"]:
                if self._put({"sequence": value["sequence"] + 1}, tag):
                    return
                continue
            if idle < WATCH_SECONDS:
                logger.info("%s: waiting for another process (%s)", self._prefix, _name(value["owner"]))
            time.sleep(min(WATCH_SECONDS, self._length_seconds / 10))

    def renew(self) -> None:
        """Show that the holder is alive. Raises LeaseLost if another has taken over, StorageError if it cannot know."""
        with self._lock:
            self.check()
            if not self._put({"sequence": self.sequence}, self._tag):
                self._lost = LeaseLost(
                    f"{self._storage.uri}/{self._prefix}: another process has taken over; this one ends without "
                    "committing anything more"
                )
                raise self._lost

    def check(self) -> None:
        """Raise LeaseLost if it is known that another process has taken over."""
        if self._lost is not None:
            raise self._lost

    def release(self) -> None:
        """Let the next process have it without waiting."""
        with self._lock, contextlib.suppress(StorageError):
            if self._lost is None and self.sequence:
                self._put({"sequence": self.sequence, "released": True}, self._tag)
            self.sequence = 0

    @property
    def renewal_seconds(self) -> float:
        """How often to renew."""
        return self._length_seconds / 3

    def _held_by(self, value: dict[str, Any]) -> str:
        return (
            f"another run ({_name(value['owner'])}) writes {self._storage.uri}/{self._prefix}; wait for it, stop it, "
            "or choose another run_name or storage.uri"
        )

    def _read(self) -> tuple[dict[str, Any], str] | None:
        try:
            data, tag = self._storage.read_tagged(self._path)
        except ObjectNotFound:
            return None
        try:
            value = json.loads(data)
            _has_ended(value["owner"]), _name(value["owner"])
            value["sequence"] + 1, value["length_seconds"] + 0.0, value["released"]
        except (ValueError, KeyError, TypeError) as error:
            raise LeaseHeld(
                f"{self._storage.uri}/{self._path} is damaged; if nothing writes there, delete it and run again"
            ) from error
        return value, tag

    def _put(self, value: dict[str, Any], tag: str | None) -> bool:
        """Write the lease if it still has this tag (None: if there is none); whether that succeeded."""
        value = {
            "owner": _this_process(),
            "length_seconds": self._length_seconds,
            "released": False,
            "nonce": f"{self._nonce}-{secrets.token_hex(4)}",
            **value,
        }
        data = json.dumps(value, sort_keys=True).encode()
        try:
            self._tag = self._storage.write(self._path, data, only_if_absent=tag is None, if_match=tag)
        except PreconditionFailed:
            # If the answer to a request was lost, the same or the next one fails since it had succeeded.
            try:
                found, self._tag = self._storage.read_tagged(self._path)
            except ObjectNotFound:
                return False
            if found != data:
                return self._nonce.encode() in found and self._put(value, self._tag)
        self.sequence = value["sequence"]
        return True


@contextlib.contextmanager
def holding(storage: Storage, prefix: str, length_seconds: float = LENGTH_SECONDS) -> Iterator[Lease]:
    """Hold the lease for the length of a `with` block; a thread renews it. Raises LeaseHeld."""
    lease = Lease(storage, prefix, length_seconds)
    lease.acquire()
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(lease.renewal_seconds):
            try:
                lease.renew()
            except LeaseLost as error:
                logger.error("%s", error)
                return
            except StorageError as error:
                logger.warning("%s: cannot renew the lease now: %s", prefix, error)

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        ended.set()
        thread.join(length_seconds)
        lease.release()


def require_holder(storage: Storage, prefix: str, sequence: int) -> None:
    """Raise LeaseLost unless the holder with this sequence has the lease: for its helpers in other processes."""
    found = Lease(storage, prefix)._read()
    if found is None or found[0]["sequence"] != sequence or found[0]["released"]:
        raise LeaseLost(f"{storage.uri}/{prefix}: another process has taken over; this one ends without committing")


def living(storage: Storage, prefixes: Collection[str]) -> set[str]:
    """Those of these prefixes whose lease a living process holds.

    Known at once of the processes of this machine; others are watched until they renew it, or its length is over.
    """
    alive, watched = set(), {}
    for prefix in prefixes:
        found = _look(storage, prefix)
        if found is None or found[0]["released"] or _has_ended(found[0]["owner"]):
            continue
        if _machine() and found[0]["owner"]["machine"] == _machine():
            alive.add(prefix)
        else:
            watched[prefix] = found
    if watched:
        logger.info("watching for a renewal of the lease of %s", ", ".join(sorted(watched)))
    began = time.monotonic()
    while watched:
        time.sleep(min(WATCH_SECONDS, *(value["length_seconds"] / 10 for value, _ in watched.values())))
        idle = time.monotonic() - began
        for prefix, (value, tag) in list(watched.items()):
            found = _look(storage, prefix)
            if found is not None and found[1] != tag and not found[0]["released"]:
                alive.add(prefix)
                del watched[prefix]
            elif found is None or found[0]["released"] or idle >= value["length_seconds"]:
                del watched[prefix]
    return alive


def _look(storage: Storage, prefix: str) -> tuple[dict[str, Any], str] | None:
    """The lease and its tag, or None if there is none that can be read."""
    with contextlib.suppress(LeaseHeld):
        return Lease(storage, prefix)._read()
    return None


def _this_process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "started": _started(os.getpid())}


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner['pid']} on {owner['host']}"


def _machine() -> str:
    """This boot of this machine and this namespace of process ids: within it, a process id means one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (field 22 of proc_pid_stat(5)); empty: there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def _has_ended(owner: dict[str, Any]) -> bool:
    """Whether the owner is known to be dead: a process of this machine that is there no more."""
    machine, pid = _machine(), owner["pid"]
    if not machine or owner["machine"] != machine:
        return False
    started = _started(pid)
    if started:
        return bool(started != owner["started"])
    try:
        os.kill(pid, 0)
    except PermissionError:  # another user's, and hidden from this one
        return False
    except ProcessLookupError:
        return True
    return True  # a zombie
