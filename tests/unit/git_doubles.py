"""Real repositories for tests, and a git that does something else at one point."""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codeparrot.settings import validate
from codeparrot.sources import CollectSettings, Entry, open_source

AUTHOR = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in {"NAME": "A", "EMAIL": "a@example.com", "DATE": "2020-01-01T00:00:00Z"}.items()
}


def git(folder: Path, *arguments: str, data: bytes | None = None, **environment: str) -> str:
    """What git prints, as somebody without any configuration."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    nobody = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", *arguments],
        cwd=folder,
        env={**others, **AUTHOR, **nobody, **environment},
        input=data,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("utf-8", "backslashreplace").strip()


def commit(folder: Path, files: Mapping[bytes, bytes]) -> str:
    """The hash of a new commit on the branch `main` that holds exactly these files; makes the repository at need."""
    if not (folder / ".git").exists():
        folder.mkdir(parents=True, exist_ok=True)
        git(folder, "init", "--quiet", "--initial-branch=main")
    for each in folder.iterdir():
        if each.name != ".git":
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    for name, data in files.items():
        path = Path(os.fsdecode(bytes(folder) + b"/" + name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=x")
    return git(folder, "rev-parse", "HEAD")


def entries_of(url: str | Path, **settings: Any) -> Sequence[Entry]:
    values = {"sources": [{"kind": "git", "url": str(url), **settings}]}
    return open_source(validate(CollectSettings, values, "run.yaml").sources[0]).entries()


def fake_git(folder: Path, branch: str) -> Path:
    """A folder for PATH whose git logs its arguments, then does what `branch` (lines of a shell's `case`) says."""
    real = shutil.which("git")
    assert real is not None
    program = folder / "git"
    folder.mkdir()
    log = shlex.quote(str(folder / "log"))
    program.write_text(f'#!/bin/sh\necho "$*" >> {log}\ncase "$*" in\n{branch}\nesac\nexec {real} "$@"\n')
    program.chmod(0o755)
    return folder
