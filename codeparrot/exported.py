"""A model and its tokenizer, from files as `transformers` and the hub have them.

Weights are safetensors only, and code that lies beside a model is not run: nothing that is loaded can act.
"""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from codeparrot.errors import CheckpointError
from codeparrot.manifest import Manifest
from codeparrot.model import ARCHITECTURES
from codeparrot.precision import choose_precision
from codeparrot.storage import Storage

if TYPE_CHECKING:
    import transformers

EXPORT = "export/"
"""Before the names of the files that a run exports."""
TOKENIZER = "tokenizer.json"
MAX_SHOWN_ERROR = 300


class Pretrained(NamedTuple):
    """A model in evaluation mode, on its device and in its precision, and the tokenizer it was trained with."""

    model: "transformers.PreTrainedModel"
    tokenizer: "transformers.PreTrainedTokenizerFast"
    source: str
    """What was loaded, in full: `s3://codeparrot/tiny/runs/tiny`."""


def load_export(
    storage: Storage, trained: Manifest, *, device: str | None = None, precision: str = "auto"
) -> Pretrained:
    """The model that a run has exported. Raises ManifestError if a file is damaged, CheckpointError."""
    files = export_of(storage, trained)
    return load_files(files, f"{storage.uri}/{trained.prefix}", device=device, precision=precision)


def export_of(storage: Storage, trained: Manifest) -> dict[str, bytes]:
    """The files that a run has exported."""
    return {name.removeprefix(EXPORT): trained.read(storage, name) for name in trained.names(EXPORT)}


def load_files(
    files: Mapping[str, bytes], source: str, *, device: str | None = None, precision: str = "auto"
) -> Pretrained:
    """The model in these files. Raises CheckpointError."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return load_folder(folder, source, device=device, precision=precision)


def load_folder(folder: str, source: str, *, device: str | None = None, precision: str = "auto") -> Pretrained:
    """The model in a folder, or of this name on the hub where HF_HUB_OFFLINE=0. Raises CheckpointError.

    `device`: a GPU if there is one, unless named. `precision`: as `codeparrot.precision` chooses it.
    """
    import torch
    import transformers
    from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    import codeparrot.attention  # noqa: F401 - makes its models known: their code is ours, not the folder's

    disable_progress_bar()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if choose_precision(precision, device) == "bf16" else torch.float32
    safely = {"trust_remote_code": False, "local_files_only": os.environ.get("HF_HUB_OFFLINE", "1") != "0"}
    if Path(folder).is_dir() and not (Path(folder) / TOKENIZER).is_file():  # transformers would make an empty one up
        raise CheckpointError(f"{source} has no {TOKENIZER}: only tokenizers of that format can be used")
    of_kind = ARCHITECTURES["gpt2"]
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **safely)
        of_kind = ARCHITECTURES.get(AutoConfig.from_pretrained(folder, **safely).model_type, ARCHITECTURES["gpt2"])
        loader = getattr(transformers, of_kind.loader)
        model = loader.from_pretrained(folder, use_safetensors=True, dtype=dtype, **safely)
    except Exception as error:  # files of strangers: every library reports them in its own way
        gist = " ".join(str(error).split())[:MAX_SHOWN_ERROR].replace(folder, source)
        raise CheckpointError(f"{source} cannot be loaded as a {of_kind.task}: {gist}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise CheckpointError(f"{source} has no {TOKENIZER}: only tokenizers of that format can be used")
    return Pretrained(model.eval().to(device), tokenizer, source)
