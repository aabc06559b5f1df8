import contextlib
import json
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from codeparrot import lease as module
from codeparrot.errors import LeaseHeld, LeaseLost, PreconditionFailed, StorageError, StoreUnreachable
from codeparrot.lease import Lease, holding, require_holder
from codeparrot.storage import LocalStorage
from tests.unit.conftest import wait_until

PREFIX = "runs/tiny"
PATH = f"{PREFIX}/lease.json"


class FaultyStorage(LocalStorage):
    """A store that calls back before it reads, and whose writes fail as told."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.before_read: Callable[[], object] = lambda: None
        self.lose_answer: StorageError | None = None
        """Raised after the next write, which succeeds."""
        self.failure: StorageError | None = None
        """Raised by every request."""
        self.num_failures = 0

    def read_tagged(self, path: str) -> tuple[bytes, str]:
        self.before_read()
        self._fail()
        return super().read_tagged(path)

    def write(self, path: str, data: bytes, *, only_if_absent: bool = False, if_match: str | None = None) -> str:
        self._fail()
        tag = super().write(path, data, only_if_absent=only_if_absent, if_match=if_match)
        lost, self.lose_answer = self.lose_answer, None
        if lost is not None:
            raise lost
        return tag

    def _fail(self) -> None:
        if self.failure is not None:
            self.num_failures += 1
            raise self.failure


@pytest.fixture
def storage(tmp_path: Any) -> FaultyStorage:
    return FaultyStorage(str(tmp_path / "store"))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codeparrot.lease.WATCH_SECONDS", 0.005)


@pytest.fixture
def ended() -> Iterator[subprocess.Popen[bytes]]:
    """A process that has ended, and that nobody has waited for yet."""
    process = subprocess.Popen(["sleep", "600"])
    process.started = module._started(process.pid)  # type: ignore[attr-defined]
    process.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    yield process
    process.wait()


def held(storage: LocalStorage, length_seconds: float = 15.0) -> Lease:
    lease = Lease(storage, PREFIX, length_seconds)
    lease.acquire()
    return lease


def stored(storage: LocalStorage) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(storage.read(PATH))
    return value


def write(storage: LocalStorage, **changes: Any) -> None:
    """A lease of another machine, with some changes."""
    owner = {"host": "elsewhere", "pid": 1234, "machine": "another", "started": "5678"}
    value = {"owner": owner, "sequence": 6, "length_seconds": 15.0, "released": False, **changes}
    storage.write(PATH, json.dumps(value).encode())


def this_process(**changes: Any) -> dict[str, Any]:
    return {**module._this_process(), **changes}


def seconds_to_acquire(lease: Lease) -> float:
    began = time.monotonic()
    lease.acquire()
    return time.monotonic() - began


def refuse_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("it waits")

    monkeypatch.setattr("codeparrot.lease.time.sleep", sleep)


def test_a_lease_that_nobody_has_is_taken_at_once(storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_wait(monkeypatch)
    lease = Lease(storage, PREFIX)
    assert lease.sequence == 0
    lease.acquire()
    assert (lease.sequence, stored(storage)["sequence"], stored(storage)["released"]) == (1, 1, False)
    assert stored(storage)["owner"]["pid"] == os.getpid()


def test_prefixes_have_leases_of_their_own(storage: FaultyStorage) -> None:
    held(storage)
    other = Lease(storage, "runs/other")
    other.acquire()
    assert other.sequence == 1


def test_a_lease_that_is_renewed_is_refused_with_its_holder_named(storage: FaultyStorage) -> None:
    first = held(storage)
    storage.before_read = first.renew
    began = time.monotonic()
    with pytest.raises(LeaseHeld) as told:
        held(storage)
    assert time.monotonic() - began < 5
    owner = stored(storage)["owner"]
    assert f"another run (process {os.getpid()} on {owner['host']}) writes {storage.uri}/{PREFIX};" in str(told.value)
    assert "run_name or storage.uri" in str(told.value)
    storage.before_read = lambda: None
    first.renew()


def test_who_waits_tells_for_whom(storage: FaultyStorage, caplog: pytest.LogCaptureFixture) -> None:
    write(storage, length_seconds=0.05)
    with caplog.at_level(logging.INFO):
        held(storage)
    assert caplog.messages[0] == f"{PREFIX}: waiting for another process (process 1234 on elsewhere)"


def test_a_released_lease_is_taken_at_once_with_a_higher_sequence(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_wait(monkeypatch)
    for sequence in (1, 2, 3):
        lease = held(storage)
        assert lease.sequence == sequence
        lease.renew()
        lease.release()
        assert (lease.sequence, stored(storage)["sequence"], stored(storage)["released"]) == (0, sequence, True)


def test_a_lease_of_a_process_of_this_machine_that_has_ended_is_taken_at_once(
    storage: FaultyStorage, ended: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_wait(monkeypatch)
    owner = this_process(pid=ended.pid, started=ended.started)  # type: ignore[attr-defined]
    write(storage, owner=owner, sequence=6)
    assert held(storage).sequence == 7
    ended.wait()
    write(storage, owner=owner, sequence=8)
    assert held(storage).sequence == 9


def test_a_process_that_has_the_id_of_a_dead_one_does_not_hold_its_lease(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_to_wait(monkeypatch)
    write(storage, owner=this_process(started="1"))
    assert held(storage).sequence == 7


@pytest.mark.parametrize(
    "owner",
    [
        {"machine": "another"},  # where the same process id means another process
        {"machine": "another", "started": ""},
        {},  # it lives, but is silent: stopped, or cut off from the store
    ],
)
def test_any_other_lease_is_taken_after_it_was_unchanged_for_its_length(
    storage: FaultyStorage, owner: dict[str, Any]
) -> None:
    write(storage, owner=this_process(**owner), length_seconds=0.2)
    lease = Lease(storage, PREFIX, length_seconds=0.01)
    assert 0.2 <= seconds_to_acquire(lease) < 10
    assert lease.sequence == 7


def test_without_a_name_for_this_boot_no_process_is_taken_for_dead(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_machine", lambda: "")
    monkeypatch.setattr(module, "_started", lambda pid: "")
    write(storage, owner=this_process(started="5678"), length_seconds=0.1)
    assert seconds_to_acquire(Lease(storage, PREFIX)) >= 0.1


def test_a_dead_lease_that_another_takes_first_is_refused(storage: FaultyStorage) -> None:
    write(storage, length_seconds=0.05)
    rival = Lease(FaultyStorage(str(storage.root)), PREFIX)
    original = storage.write

    def too_late(*args: Any, **options: Any) -> str:
        rival.acquire()
        return original(*args, **options)

    storage.write = too_late  # type: ignore[method-assign]
    with pytest.raises(LeaseHeld, match=f"process {os.getpid()}"):
        held(storage)
    assert rival.sequence == 7
    rival.renew()


def test_a_lease_released_while_somebody_waits_is_taken(storage: FaultyStorage) -> None:
    first, reads = held(storage), iter(range(10))

    def release_later() -> None:
        if next(reads) == 3:
            storage.before_read = lambda: None
            first.release()

    storage.before_read = release_later
    assert held(storage).sequence == 2


def test_who_lost_the_lease_is_told_and_leaves_that_of_the_other_alone(storage: FaultyStorage) -> None:
    first = held(storage, length_seconds=0.02)
    first.check()
    second = held(storage)
    assert (first.sequence, second.sequence) == (1, 2)
    taken = storage.read(PATH)
    with pytest.raises(LeaseLost, match=f"{storage.uri}/{PREFIX}: another process has taken over"):
        first.renew()
    with pytest.raises(LeaseLost):
        first.check()
    with pytest.raises(LeaseLost):
        first.renew()
    first.release()
    assert storage.read(PATH) == taken
    second.renew()


def test_who_does_not_know_that_it_lost_the_lease_cannot_release_that_of_the_other(storage: FaultyStorage) -> None:
    first = held(storage, length_seconds=0.02)
    second = held(storage)
    first.release()
    assert not stored(storage)["released"]
    second.renew()


def test_a_lease_that_was_deleted_is_lost(storage: FaultyStorage) -> None:
    lease = held(storage)
    storage.delete([PATH])
    with pytest.raises(LeaseLost):
        lease.renew()


def test_releasing_what_was_never_held_does_nothing(storage: FaultyStorage) -> None:
    Lease(storage, PREFIX).release()
    assert list(storage.list()) == []


def test_a_lease_is_released_once(storage: FaultyStorage) -> None:
    lease = held(storage)
    lease.release()
    after = storage.read(PATH)
    lease.release()
    assert storage.read(PATH) == after


def test_every_renewal_changes_the_lease(storage: FaultyStorage) -> None:
    """Whoever watches it sees so that the holder is alive."""
    lease, tags = held(storage), set()
    for _ in range(5):
        tags.add(storage.read_tagged(PATH)[1])
        lease.renew()
        assert lease.sequence == 1
    assert len(tags) == 5


def test_a_request_that_is_sent_again_since_its_answer_was_lost_is_the_holders(storage: FaultyStorage) -> None:
    lost = PreconditionFailed("was changed by another writer")
    lease = Lease(storage, PREFIX)
    storage.lose_answer = lost
    lease.acquire()
    assert lease.sequence == 1
    storage.lose_answer = lost
    lease.renew()
    lease.renew()
    storage.lose_answer = lost
    lease.release()
    assert stored(storage)["released"]
    storage.lose_answer = lost
    assert held(storage).sequence == 2


def test_a_renewal_whose_answer_never_came_does_not_lose_the_lease(storage: FaultyStorage) -> None:
    lease = held(storage)
    for _ in range(3):
        storage.lose_answer = StoreUnreachable("it stopped answering")
        with pytest.raises(StoreUnreachable):
            lease.renew()
    lease.renew()
    lease.check()
    storage.lose_answer = StoreUnreachable("it stopped answering")
    with pytest.raises(StoreUnreachable):
        lease.renew()
    lease.release()
    assert stored(storage)["released"]


def test_a_renewal_whose_answer_never_came_does_not_hide_that_the_lease_was_lost(storage: FaultyStorage) -> None:
    first = held(storage, length_seconds=0.02)
    storage.lose_answer = StoreUnreachable("it stopped answering")
    with pytest.raises(StoreUnreachable):
        first.renew()
    second = held(storage)
    with pytest.raises(LeaseLost):
        first.renew()
    second.renew()


def test_a_store_that_does_not_answer_costs_nobody_the_lease(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Lease, "renewal_seconds", 0.002)
    with holding(storage, PREFIX) as lease:
        storage.failure = StoreUnreachable("nobody answers")
        wait_until(lambda: storage.num_failures >= 3)
        lease.check()
        storage.failure = None
        before = storage.read(PATH)
        wait_until(lambda: storage.read(PATH) != before)
        lease.check()
        assert lease.sequence == 1
    assert stored(storage)["released"]
    assert caplog.messages[0] == f"{PREFIX}: cannot renew the lease now: nobody answers"


def test_a_lease_is_kept_for_the_length_of_a_block(storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lease, "renewal_seconds", 0.002)
    with contextlib.suppress(KeyError), holding(storage, PREFIX) as lease:
        assert lease.sequence == 1
        with pytest.raises(LeaseHeld):
            held(storage)
        raise KeyError
    assert stored(storage)["released"]
    assert not [thread for thread in threading.enumerate() if thread.name == "lease"]
    refuse_to_wait(monkeypatch)
    with holding(storage, PREFIX) as lease:
        assert lease.sequence == 2


def test_a_block_whose_lease_was_lost_is_told_and_leaves_that_of_the_other_alone(
    storage: FaultyStorage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Lease, "renewal_seconds", 0.002)
    with holding(storage, PREFIX) as lease:
        write(storage, sequence=2)
        wait_until(lambda: "taken over" in caplog.text)
        with pytest.raises(LeaseLost):
            lease.check()
        with pytest.raises(LeaseLost):
            lease.renew()
    assert (stored(storage)["sequence"], stored(storage)["released"]) == (2, False)


def test_a_store_that_is_away_at_the_end_does_not_fail_the_work(storage: FaultyStorage) -> None:
    with holding(storage, PREFIX):
        storage.failure = StoreUnreachable("nobody answers")
    storage.failure = None
    assert not stored(storage)["released"]


@pytest.mark.parametrize("before", [None, "released", "dead"])
def test_one_of_many_who_want_the_lease_at_once_gets_it(
    storage: FaultyStorage, before: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lease, "renewal_seconds", 0.005)
    if before is not None:
        write(storage, released=before == "released", owner=this_process(started="1"))
    num_threads = 8
    start, others_done = threading.Barrier(num_threads), threading.Event()
    winners: list[int] = []
    losers: list[LeaseHeld] = []

    def compete() -> None:
        start.wait()
        try:
            with holding(storage, PREFIX) as lease:
                winners.append(lease.sequence)
                others_done.wait(30)
                lease.renew()
        except LeaseHeld as error:
            losers.append(error)
            if len(losers) == num_threads - 1:
                others_done.set()

    threads = [threading.Thread(target=compete) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert winners == [1 if before is None else 7]
    assert len(losers) == num_threads - 1
    assert stored(storage)["released"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff",
        b"3",
        b"[]",
        b"{}",
        b'{"owner": {}, "sequence": 1, "length_seconds": 15, "released": false}',
        b'{"owner": null, "sequence": 1, "length_seconds": 15, "released": false}',
        b'{"owner": {"host": "h", "pid": 1, "machine": "m", "started": "1"}, "sequence": "1", "released": false}',
    ],
)
def test_a_damaged_lease_is_an_error_with_a_way_out(storage: FaultyStorage, data: bytes) -> None:
    storage.write(PATH, data)
    with pytest.raises(LeaseHeld) as told:
        held(storage)
    assert str(told.value) == f"{storage.uri}/{PATH} is damaged; if nothing writes there, delete it and run again"
    assert storage.read(PATH) == data


def test_helpers_of_the_holder_may_go_on_as_long_as_it_holds_the_lease(storage: FaultyStorage) -> None:
    with pytest.raises(LeaseLost):
        require_holder(storage, PREFIX, 1)
    first = held(storage)
    require_holder(storage, PREFIX, 1)
    first.renew()
    require_holder(storage, PREFIX, 1)
    first.release()
    with pytest.raises(LeaseLost, match=f"{storage.uri}/{PREFIX}: another process has taken over"):
        require_holder(storage, PREFIX, 1)
    held(storage)
    require_holder(storage, PREFIX, 2)
    with pytest.raises(LeaseLost):
        require_holder(storage, PREFIX, 1)
