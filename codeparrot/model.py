"""The model: a `transformers` GPT-2 built from a local configuration, never from a hub.

`save_pretrained`, `generate` and the hub's formats work as everywhere else, and an export loads with plain
`AutoModelForCausalLM.from_pretrained(path)`.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, model_validator

from codeparrot.draws import key
from codeparrot.settings import Settings

if TYPE_CHECKING:
    import torch
    import transformers


class ModelSettings(Settings):
    """The size of a GPT-2."""

    n_layer: PositiveInt
    n_head: PositiveInt
    n_embd: PositiveInt
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """For embeddings, attention and residuals alike; single-epoch pre-training needs none."""
    attention: Literal["sdpa", "eager"] = "sdpa"

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSettings":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        return self


def model_config(
    settings: ModelSettings, *, vocab_size: int, max_seq_len: int, eos_token_id: int
) -> "transformers.GPT2Config":
    """The `transformers` configuration of this model."""
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=max_seq_len,
        n_layer=settings.n_layer,
        n_head=settings.n_head,
        n_embd=settings.n_embd,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new in one kernel, which keeps one tensor and not five
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        resid_pdrop=settings.dropout,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        attn_implementation=settings.attention,
    )


def build_model(config: "transformers.GPT2Config", seed: int) -> "transformers.GPT2LMHeadModel":
    """A freshly initialised model; the same seed gives the same weights."""
    import torch
    from transformers import GPT2LMHeadModel

    torch.manual_seed(key(seed, "weights"))
    return GPT2LMHeadModel(config)


def num_parameters(config: "transformers.GPT2Config") -> int:
    """Parameters of the model, tied ones once, counted without allocating any."""
    import torch
    from transformers import GPT2LMHeadModel

    with torch.device("meta"):
        model = GPT2LMHeadModel(config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_model(files: Mapping[str, bytes]) -> "transformers.PreTrainedModel":
    """The model in the files of an export, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        model: transformers.PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    return model.eval()


def export_files(
    model: "transformers.PreTrainedModel", weights: "Mapping[str, torch.Tensor] | None" = None
) -> dict[str, bytes]:
    """A model's files in the layout of the hub. `weights`: its state, where it is not on this rank alone."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=weights)
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
