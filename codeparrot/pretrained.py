"""A model and its tokenizer, from whichever place a person names: what `--checkpoint` takes.

    tiny                             a run of the recipe's store: its export, or its newest intact checkpoint
    tiny@120                         the checkpoint of one of its steps
    s3://BUCKET/BASE/runs/tiny       a run of any store; with /checkpoints/step-00000120 one of its checkpoints
    ./export, s3://BUCKET/my-model   a folder as `transformers` and the hub have them
    OWNER/NAME                       a model of the hub, only where HF_HUB_OFFLINE=0 allows a network

Weights are safetensors only, and no code comes with a model: nothing that is loaded can act.
"""

import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from codeparrot.errors import CheckpointError
from codeparrot.hub import checkpoint_tokenizer, restored_model
from codeparrot.manifest import load_manifest
from codeparrot.model import export_files
from codeparrot.precision import choose_precision
from codeparrot.runs import choose_checkpoint, find_runs, prefix_of
from codeparrot.storage import Storage, open_storage
from codeparrot.tokenizer import Encoder

if TYPE_CHECKING:
    import transformers

logger = logging.getLogger(__name__)

CONFIG = "config.json"
EXPORT = "export/"
OF_A_RUN = re.compile(r"(?P<base>.*?)/?runs/(?P<run>[^/]+)(/checkpoints/step-(?P<step>\d+))?/?")
NAMED = re.compile(r"(?P<run>[a-z0-9][-a-z0-9]*)(@(?P<step>\d+))?")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAX_SHOWN_ERROR = 300


class Pretrained(NamedTuple):
    """A model in evaluation mode, on its device and in its precision, and the tokenizer it was trained with."""

    model: "transformers.PreTrainedModel"
    tokenizer: "transformers.PreTrainedTokenizerFast"
    source: str
    """What was loaded, in full: `s3://codeparrot/tiny/runs/tiny, step 700`."""


def load_pretrained(
    where: str, storage: Storage | None = None, *, device: str | None = None, precision: str = "auto"
) -> Pretrained:
    """The model at `where`. `storage`: in which run names are looked up; `device`: a GPU if there is one, unless named.

    Raises CheckpointError that says what was looked for, ManifestError if a stored file is damaged.
    """
    found, source = located(where, storage)
    if isinstance(found, str):
        return _loaded(found, source, device, precision)
    with tempfile.TemporaryDirectory() as folder:
        for name, data in found.items():
            (Path(folder) / name).write_bytes(data)
        return _loaded(folder, source, device, precision)


def located(where: str, storage: Storage | None = None) -> tuple[str | Mapping[str, bytes], str]:
    """What `where` names: a folder or a name of the hub, or else files as the hub has them; and what it is in full."""
    named = NAMED.fullmatch(where)
    if named and storage and find_runs(storage, named["run"]):
        return _of_run(storage, named["run"], named["step"])
    folder = Path(where.removeprefix("file://")).expanduser()
    of_a_run = OF_A_RUN.fullmatch(where)
    if of_a_run and ("://" in where or folder.exists()):
        return _of_run(open_storage(of_a_run["base"] or "."), of_a_run["run"], of_a_run["step"])
    if where.startswith("s3://"):
        return _of_prefix(open_storage(where), where)
    if folder.is_dir():
        if not (folder / CONFIG).is_file():
            raise CheckpointError(
                f"{where} is a folder without {CONFIG}; name one that `ray_jobs.runs export` has written"
            )
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
        return {name.removeprefix(EXPORT): made.read(storage, name) for name in made.names(EXPORT)}, where
    checkpoint = choose_checkpoint(storage, run, int(step) if step else None)
    tokenizer = checkpoint_tokenizer(storage, prefix_of(run), checkpoint)
    model = restored_model(checkpoint, Encoder(tokenizer["tokenizer.json"].decode()).eos_token_id)
    return {**export_files(model), **tokenizer}, f"{where}, step {checkpoint.step}"


def _of_prefix(storage: Storage, where: str) -> tuple[Mapping[str, bytes], str]:
    names = [path for path, _ in storage.list() if "/" not in path]
    if CONFIG not in names:
        raise CheckpointError(
            f"{where} holds no {CONFIG}; name a run, a checkpoint, or what `ray_jobs.runs export` wrote"
        )
    return {name: storage.read(name) for name in names}, where


def _loaded(folder: str, source: str, device: str | None, precision: str) -> Pretrained:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if choose_precision(precision, device) == "bf16" else torch.float32
    safely = {"trust_remote_code": False, "local_files_only": os.environ.get("HF_HUB_OFFLINE", "1") != "0"}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, dtype=dtype, **safely)
    except Exception as error:  # files of strangers: every library reports them in its own way
        gist = " ".join(str(error).split())[:MAX_SHOWN_ERROR].replace(folder, source)
        raise CheckpointError(f"{source} cannot be loaded as a causal language model: {gist}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{source} has no tokenizer.json: only tokenizers of that format can be used")
    return Pretrained(model.eval().to(device), tokenizer, source)
