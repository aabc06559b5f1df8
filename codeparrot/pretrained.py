"""A model and its tokenizer, from whichever place a person names: what `--checkpoint` takes.

tiny                             a run of the recipe's store: its export, or its newest intact checkpoint
tiny@120                         the checkpoint of one of its steps
s3://BUCKET/BASE/runs/tiny       a run of any store; with /checkpoints/step-00000120 one of its checkpoints
./export, s3://BUCKET/my-model   a folder as `transformers` and the hub have them
OWNER/NAME                       a model of the hub, only where HF_HUB_OFFLINE=0 allows a network
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from codeparrot.errors import CheckpointError
from codeparrot.exported import Pretrained as Pretrained
from codeparrot.exported import export_of, load_files, load_folder
from codeparrot.hub import checkpoint_tokenizer, restored_model
from codeparrot.manifest import load_manifest
from codeparrot.model import CAUSAL, export_files, task_of
from codeparrot.runs import choose_checkpoint, find_runs, prefix_of
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import Encoder

CONFIG = "config.json"
OF_A_RUN = re.compile(r"(?P<base>.*?)/?runs/(?P<run>[^/]+)(/checkpoints/step-(?P<step>\d+))?/?")
NAMED = re.compile(r"(?P<run>[a-z0-9][-a-z0-9]*)(@(?P<step>\d+))?")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_pretrained(
    where: str,
    storage: Storage | None = None,
    *,
    device: str | None = None,
    precision: str = "auto",
    any_kind: bool = False,
) -> Pretrained:
    """The model at `where`. `storage`: in which run names are looked up; `device`: a GPU if there is one, unless named.

    Raises CheckpointError that says what was looked for, also if it is no causal language model, unless it may be of
    `any_kind`; ManifestError if a stored file is damaged.
    """
    found, source = located(where, storage)
    load = load_folder if isinstance(found, str) else load_files
    loaded: Pretrained = load(found, source, device=device, precision=precision)  # type: ignore[arg-type]
    task = task_of(loaded.model.config)
    if task != CAUSAL and not any_kind:
        raise CheckpointError(f"{source} is a {task}; this is for a {CAUSAL}")
    return loaded


def located(where: str, storage: Storage | None = None) -> tuple[str | Mapping[str, bytes], str]:
    """What `where` names: a folder or a name of the hub, or else files as the hub has them; and what it is in full."""
    named = NAMED.fullmatch(where)
    if named and storage and find_runs(storage, named["run"]):
        return _of_run(storage, named["run"], named["step"])
    folder = Path(where.removeprefix("file://")).expanduser()
    of_a_run = OF_A_RUN.fullmatch(where)
    if of_a_run and ("://" in where or (folder.is_dir() and not (folder / CONFIG).is_file())):
        return _of_run(open_storage(of_a_run["base"] or "."), of_a_run["run"], of_a_run["step"])
    if where.startswith("s3://"):
        return _of_prefix(open_storage(where), where)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(f"{where} is a folder without {CONFIG}; name one that `ray_jobs.runs export` wrote")
        return str(folder), str(folder.absolute())
    if HUB_NAME.fullmatch(where) and os.environ.get("HF_HUB_OFFLINE", "1") == "0":
        return where, f"{where} of the hub"
    runs = "a run of a store that no recipe names"
    if storage:
        runs = f"a run of {storage.uri} (it has: {', '.join(run.name for run in find_runs(storage)) or 'none'})"
    raise CheckpointError(f"no model {where!r}: neither a folder nor {runs}; one of the hub needs HF_HUB_OFFLINE=0")


def _of_run(storage: Storage, run: str, step: str | None) -> tuple[Mapping[str, bytes], str]:
    """What a run has exported, or the checkpoint of a step, or the newest intact one."""
    where = f"{storage.uri}/{prefix_of(run)}"
    made = None if step else load_manifest(storage, prefix_of(run))
    if made is not None:
        return export_of(storage, made), where
    checkpoint = choose_checkpoint(storage, run, int(step) if step else None)
    tokenizer = checkpoint_tokenizer(storage, prefix_of(run), checkpoint)
    model = restored_model(checkpoint, Encoder(tokenizer["tokenizer.json"].decode()).eos_token_id)
    return {**export_files(model), **tokenizer}, f"{where}, step {checkpoint.step}"


def _of_prefix(storage: Storage, where: str) -> tuple[Mapping[str, bytes], str]:
    names = [path for path, _ in storage.list() if "/" not in path]
    if CONFIG not in names:
        raise CheckpointError(f"{where} holds no {CONFIG}; name a run, or what `ray_jobs.runs export` wrote")
    return {name: storage.read(name) for name in names}, where
