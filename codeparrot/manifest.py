"""What a stage leaves behind: files, and last of all the manifest that makes them count.

    raw/manifest.json                       the one object that readers look at; replaced at once
    raw/data/1f0c2a9e4b7d-83ad91/...        the files it names; the folder belongs to one attempt

An attempt writes its files into a folder of its own and then replaces `manifest.json`, so that a stage killed
at any point leaves the previous output valid, and attempts at different outputs can never mix their files. What the
manifest does not name is rubbish and is deleted by the next attempt, but for what a killed attempt at the same output
has kept as results: the next one goes on in its folder.

A stage is up to date when its fingerprint is the one in the manifest: its settings, its code, and the *content*
of its inputs (not when or where they were written), so work that comes out the same is not repeated downstream.
"""

import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from codeparrot.errors import ManifestError, ObjectNotFound
from codeparrot.storage import Storage, sha256_hex

MANIFEST = "manifest.json"
DATA = "data"
RESULTS = "results"
"""In the folder of an attempt: what its tasks have told, so that none is done again after a kill."""
FORMAT = 1
ABOUT = ("card.html", "card.md")
"""Files that tell of an output and are no part of it: other words make nothing downstream anew."""


@dataclass(frozen=True)
class File:
    """One stored file: its name within the output, its size and its SHA-256."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The committed output of one stage."""

    stage: str
    prefix: str
    folder: str
    """Where the files lie, relative to the storage's base: `raw/data/1f0c2a9e4b7d-83ad91`."""
    fingerprint: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: str
    files: tuple[File, ...]
    counts: Mapping[str, Any]
    seconds: float
    created: str
    """UTC, ISO 8601. Not part of the digest."""
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of the content alone: names and hashes of the files, and the counts."""
        content = [asdict(file) for file in self.files if file.name not in ABOUT]
        return sha256_hex(canonical([content, self.counts]))

    def to_json(self) -> bytes:
        """As it is stored."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    def path(self, name: str) -> str:
        """The path of one of the files. Raises ManifestError if the manifest does not name it."""
        return f"{self.folder}/{self.file(name).name}"

    def file(self, name: str) -> File:
        """The entry of one file. Raises ManifestError if the manifest does not name it."""
        for file in self.files:
            if file.name == name:
                return file
        raise ManifestError(f"{self.prefix}/{MANIFEST} names no file {name!r}")

    def names(self, prefix: str = "") -> list[str]:
        """The names of the files that begin with `prefix`, in order."""
        return [file.name for file in self.files if file.name.startswith(prefix)]

    def read(self, storage: Storage, name: str) -> bytes:
        """The bytes of one file, checked against its hash. Raises ManifestError if they differ."""
        try:
            data = storage.read(self.path(name))
        except ObjectNotFound:
            data = None
        if data is None or sha256_hex(data) != self.file(name).sha256:
            how = "gone" if data is None else "damaged: its SHA-256 is not the one in its manifest"
            raise ManifestError(
                f"{storage.uri}/{self.path(name)} is {how}; delete {self.prefix}/{MANIFEST} to make it again"
            )
        return data

    def missing(self, storage: Storage) -> list[str]:
        """The names of files that are not there or not of their size: one listing, no reading."""
        stored = dict(storage.list(f"{self.folder}/"))
        return [file.name for file in self.files if stored.get(f"{self.folder}/{file.name}") != file.size_bytes]


def canonical(value: Any) -> bytes:
    """JSON with one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def json_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """A line of JSON for each row."""
    return "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows).encode()


def load_manifest(storage: Storage, prefix: str) -> Manifest | None:
    """The committed output under `prefix`, or None. Raises ManifestError if the manifest cannot be read."""
    path = f"{prefix}/{MANIFEST}"
    try:
        data = storage.read(path)
    except ObjectNotFound:
        return None
    try:
        values = json.loads(data)
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r} is not {FORMAT}")
        values["files"] = tuple(File(**file) for file in values["files"])
        return Manifest(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(
            f"{storage.uri}/{path} is damaged or of another version; delete it to make {prefix} again"
        ) from error


def require_manifest(storage: Storage, prefix: str, made_by: str) -> Manifest:
    """Like load_manifest, but a missing one is an error that names the stage to run first."""
    manifest = load_manifest(storage, prefix)
    if manifest is None:
        raise ManifestError(
            f"{storage.uri}/{prefix} has no {MANIFEST}; run `python -m ray_jobs.{made_by}` with this recipe first"
        )
    return manifest


@dataclass
class Attempt:
    """One attempt at writing an output: files first, `commit` last.

    `write_file` may be called from any process that knows the folder.
    """

    storage: Storage
    stage: str
    prefix: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    code: str
    clock: Callable[[], float] = time.time
    suffix: str = field(default_factory=lambda: secrets.token_hex(3))
    """Sets the folder of this attempt apart from those of others."""
    folder: str = field(init=False)
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.folder = f"{self.prefix}/{DATA}/{self.fingerprint[:12]}-{self.suffix}"
        self.started = self.clock()

    @property
    def fingerprint(self) -> str:
        """What the output depends on: settings, inputs' content and code."""
        return sha256_hex(canonical([FORMAT, self.stage, self.settings, self.inputs, self.code]))

    def up_to_date(self, committed: Manifest | None) -> bool:
        """Whether the committed output is the one this attempt would make."""
        return committed is not None and committed.fingerprint == self.fingerprint

    def write(self, name: str, data: bytes) -> File:
        """Write one file of the output."""
        return write_file(self.storage, self.folder, name, data)

    def take_up(self, committed: Manifest | None) -> None:
        """Go on where a dead attempt at the same output has kept results, and delete what others left."""
        paths = [path for path, _ in self.storage.list(f"{self.prefix}/{DATA}/{self.fingerprint[:12]}-")]
        folders = {path.split(f"/{RESULTS}/")[0] for path in paths if f"/{RESULTS}/" in path}
        if committed is not None:
            folders.discard(committed.folder)
        self.folder = min(folders, default=self.folder)
        self.clear(committed, f"{self.folder}/")

    def forget(self) -> None:
        """Delete the results that were kept: they tell of files that may be gone."""
        self.storage.delete([path for path, _ in self.storage.list(f"{self.folder}/{RESULTS}/")])

    def clear(self, committed: Manifest | None, folder: str | None = None) -> None:
        """Delete what dead attempts left: all but this folder and what the committed manifest names."""
        keep = {f"{committed.folder}/{file.name}" for file in committed.files} if committed else set()
        self.storage.sweep(f"{self.prefix}/{DATA}/")
        paths = [path for path, _ in self.storage.list(f"{self.prefix}/{DATA}/")]
        self.storage.delete([path for path in paths if path not in keep and not (folder and path.startswith(folder))])

    def commit(self, files: Iterable[File], counts: Mapping[str, Any]) -> Manifest:
        """Make the output valid by replacing the manifest, then delete the output it replaces.

        Raises ManifestError if a file is gone: another attempt at the same output has cleared it away.
        """
        manifest = self.manifest(files, counts)
        missing = manifest.missing(self.storage)
        if missing:
            raise ManifestError(
                f"{self.storage.uri}/{self.folder}: {missing[0]} is gone or cut short; is another run writing "
                f"{self.prefix} too? Nothing was committed; run again when it has ended"
            )
        self.storage.write(f"{self.prefix}/{MANIFEST}", manifest.to_json())
        self.clear(manifest)
        return manifest

    def manifest(self, files: Iterable[File], counts: Mapping[str, Any]) -> Manifest:
        """The manifest of these files, not stored yet."""
        now = self.clock()
        return Manifest(
            stage=self.stage,
            prefix=self.prefix,
            folder=self.folder,
            fingerprint=self.fingerprint,
            settings=self.settings,
            inputs=self.inputs,
            code=self.code,
            files=tuple(sorted(files, key=lambda file: file.name)),
            counts=json.loads(json.dumps(counts)),
            seconds=round(now - self.started, 3),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        )


def write_file(storage: Storage, folder: str, name: str, data: bytes) -> File:
    """Write one file of an attempt and return its entry for the manifest."""
    storage.write(f"{folder}/{name}", data)
    return File(name=name, size_bytes=len(data), sha256=sha256_hex(data))


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[str]:
    """One line per setting that differs, as `curate.validation_fraction: 0.05 -> 0.1`."""
    lines = []
    for key in sorted({*old, *new}):
        name, before, after = f"{path}{key}", old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += changed_settings(before, after, f"{name}.")
        elif before != after:
            lines.append(f"{name}: {json.dumps(before)} -> {json.dumps(after)}")
    return lines
