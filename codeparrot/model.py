"""The model: of `transformers`, built from a local configuration, never from a hub.

`save_pretrained`, `generate` and the hub's formats work as everywhere else, and an export loads with plain
`AutoModelForCausalLM.from_pretrained(path)`, or `AutoModelForMaskedLM`, or `AutoModelForSeq2SeqLM`.

`gpt2` is GPT-2. `nanochat` is what learns faster (docs/decisions/0016): rotary positions, normalised queries and keys,
ReLU squared, norms and projections without parameters of their own or biases. `modernbert` is an encoder, which sees
what stands before and after, with rotary positions and attention to the whole row in every layer. `t5` is an encoder
and a decoder.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from codeparrot.draws import key
from codeparrot.settings import Settings

if TYPE_CHECKING:
    import torch
    import transformers


class ModelSettings(Settings):
    """The kind and the size of a model."""

    LATER: ClassVar[frozenset[str]] = frozenset(
        {"architecture", "attention_window", "attention_block", "attention_num_blocks", "attention_num_global"}
    )

    architecture: Literal["gpt2", "nanochat", "modernbert", "t5"] = "gpt2"
    """nanochat: rotary positions, normalised queries and keys, ReLU squared; learns faster. modernbert: an encoder, for
    the objective `masked`. t5: an encoder and a decoder, for `span`."""
    n_layer: PositiveInt
    """Of t5: in the encoder, and again in the decoder."""
    n_head: PositiveInt
    n_embd: PositiveInt
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """For embeddings, attention and residuals alike (nanochat: for attention); single-epoch pre-training needs none."""
    attention: Literal["sdpa", "eager", "document", "window", "sparse", "linear"] = "sdpa"
    """sdpa, eager: all tokens before. document: those of the same document in a packed row. window, sparse, linear
    (`codeparrot.attention`, of gpt2): in time that grows with the length, not with its square; their exports carry the
    code that loads them."""
    attention_window: PositiveInt = 128
    """window: the tokens that are seen."""
    attention_block: PositiveInt = 32
    """sparse: tokens of a block."""
    attention_num_blocks: PositiveInt = 4
    """sparse: blocks that are seen, its own among them."""
    attention_num_global: NonNegativeInt = 16
    """sparse: first tokens of a row that all see."""

    @property
    def is_ours(self) -> bool:
        """Whether the attention is none that `transformers` has."""
        return self.attention in ("window", "sparse", "linear")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelSettings":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.architecture in ROTARY and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"n_embd / n_head ({self.n_embd // self.n_head}) must be even: pairs of numbers are rotated"
            )
        if self.is_ours and self.architecture != "gpt2":
            raise ValueError(f"attention {self.attention} is one of architecture gpt2, not of {self.architecture}")
        if self.attention not in ("sdpa", "eager") and self.architecture in NO_DECODERS:
            raise ValueError(f"attention {self.attention} is one of decoders, not of {self.architecture}")
        return self


CAUSAL = "causal language model"


@dataclass(frozen=True)
class Architecture:
    """How a kind of model is built, and where its parts are."""

    config: str
    """The class of its configuration, in `transformers` or `codeparrot.attention`."""
    model: str
    """The class of the model."""
    arguments: Callable[[ModelSettings, int], dict[str, Any]]
    """What its configuration is given besides vocabulary, length and sizes, by settings and end-of-text token."""
    embeddings: str
    """The parameter of shape (vocabulary, width)."""
    blocks: tuple[str, ...]
    """The modules that list its layers."""
    task: str = CAUSAL
    """What it is for."""
    loader: str = "AutoModelForCausalLM"
    """What loads its exports."""
    pipeline: str = "text-generation"
    """What the hub calls its use."""


def _gpt2(settings: ModelSettings, _: int) -> dict[str, Any]:
    return {
        "activation_function": "gelu_pytorch_tanh",  # GPT-2's gelu_new in one kernel, which keeps one tensor, not five
        "embd_pdrop": settings.dropout,
        "attn_pdrop": settings.dropout,
        "resid_pdrop": settings.dropout,
    }


def _codeparrot(settings: ModelSettings, eos_token_id: int) -> dict[str, Any]:
    return {
        **_gpt2(settings, eos_token_id),
        "attention_kind": settings.attention,
        "attention_window": settings.attention_window,
        "attention_block": settings.attention_block,
        "attention_num_blocks": settings.attention_num_blocks,
        "attention_num_global": settings.attention_num_global,
    }


def _nanochat(settings: ModelSettings, _: int) -> dict[str, Any]:
    return {
        "intermediate_size": 4 * settings.n_embd,
        "attention_dropout": settings.dropout,
        "final_logit_softcapping": None,  # the loss takes logits as they are
        "tie_word_embeddings": True,
        "pad_token_id": None,  # the token of that number would never be learned
    }


def _modernbert(settings: ModelSettings, eos_token_id: int) -> dict[str, Any]:
    return {
        "intermediate_size": 8 * settings.n_embd // 3,  # gated, so three matrices: as many parameters as GPT-2's two
        "layer_types": ["full_attention"] * settings.n_layer,
        "embedding_dropout": settings.dropout,
        "attention_dropout": settings.dropout,
        "mlp_dropout": settings.dropout,
        "decoder_bias": False,  # the loss takes a product with the embeddings
        "pad_token_id": None,  # the token of that number would never be learned
        "cls_token_id": eos_token_id,
        "sep_token_id": eos_token_id,
    }


def _t5(settings: ModelSettings, eos_token_id: int) -> dict[str, Any]:
    return {
        "num_layers": settings.n_layer,
        "num_decoder_layers": settings.n_layer,
        "num_heads": settings.n_head,
        "d_model": settings.n_embd,
        "d_kv": settings.n_embd // settings.n_head,
        "d_ff": 4 * settings.n_embd,
        "dropout_rate": settings.dropout,
        "pad_token_id": eos_token_id,
        "decoder_start_token_id": eos_token_id,
    }


ROTARY, NO_DECODERS = ("nanochat", "modernbert"), ("modernbert", "t5")
ARCHITECTURES = {
    "gpt2": Architecture("GPT2Config", "GPT2LMHeadModel", _gpt2, "transformer.wte.weight", ("transformer.h",)),
    "codeparrot": Architecture(
        "CodeParrotConfig", "CodeParrotForCausalLM", _codeparrot, "transformer.wte.weight", ("transformer.h",)
    ),
    "nanochat": Architecture(
        "NanoChatConfig", "NanoChatForCausalLM", _nanochat, "model.embed_tokens.weight", ("model.layers",)
    ),
    "modernbert": Architecture(
        "ModernBertConfig",
        "ModernBertForMaskedLM",
        _modernbert,
        "model.embeddings.tok_embeddings.weight",
        ("model.layers",),
        "masked language model",
        "AutoModelForMaskedLM",
        "fill-mask",
    ),
    "t5": Architecture(
        "T5Config",
        "T5ForConditionalGeneration",
        _t5,
        "shared.weight",
        ("encoder.block", "decoder.block"),
        "sequence-to-sequence model",
        "AutoModelForSeq2SeqLM",
        "text2text-generation",
    ),
}
"""By the name that `transformers` gives to the type of a model."""


def architecture_of(config: "transformers.PreTrainedConfig") -> Architecture:
    """How the model of a configuration is built."""
    return ARCHITECTURES[config.model_type]


def task_of(config: "transformers.PreTrainedConfig") -> str:
    """What a model of this configuration is for, which may be a stranger's."""
    return ARCHITECTURES.get(config.model_type, ARCHITECTURES["gpt2"]).task


def model_config(
    settings: ModelSettings, *, vocab_size: int, max_seq_len: int, eos_token_id: int
) -> "transformers.PreTrainedConfig":
    """The `transformers` configuration of this model."""
    architecture = ARCHITECTURES["codeparrot" if settings.is_ours else settings.architecture]
    config: transformers.PreTrainedConfig = _class(architecture.config)(
        vocab_size=vocab_size,
        max_position_embeddings=max_seq_len,
        num_hidden_layers=settings.n_layer,
        num_attention_heads=settings.n_head,
        hidden_size=settings.n_embd,
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        attn_implementation="eager" if settings.attention == "eager" else "sdpa",
        **architecture.arguments(settings, eos_token_id),
    )
    if settings.attention == "document":
        config.within_documents = True
    return config


def _class(name: str) -> Any:
    import transformers

    from codeparrot import attention

    return getattr(attention if name.startswith("CodeParrot") else transformers, name)


def sees_documents_alone(config: "transformers.PreTrainedConfig") -> bool:
    """Whether the model was trained on rows whose documents do not see each other."""
    return bool(getattr(config, "within_documents", False))


def build_model(config: "transformers.PreTrainedConfig", seed: int) -> "transformers.PreTrainedModel":
    """A freshly initialised model; the same seed gives the same weights."""
    import torch

    torch.manual_seed(key(seed, "weights"))
    return _empty(config)


def _empty(config: "transformers.PreTrainedConfig") -> "transformers.PreTrainedModel":
    model: transformers.PreTrainedModel = _class(architecture_of(config).model)(config)
    return model


def num_parameters(config: "transformers.PreTrainedConfig") -> int:
    """Parameters of the model, tied ones once, counted without allocating any."""
    import torch

    with torch.device("meta"):
        model = _empty(config)
    return sum(parameter.numel() for parameter in model.parameters())


def load_model(files: Mapping[str, bytes]) -> "transformers.PreTrainedModel":
    """The model in the files of an export, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    import codeparrot.attention  # noqa: F401 - makes its models known

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
    from codeparrot import attention

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, state_dict=weights)
        if isinstance(model, attention.CodeParrotForCausalLM):
            (Path(folder) / attention.FILE).write_bytes(Path(attention.__file__).read_bytes())
        return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}
