"""Attention that costs less than all pairs of tokens, plugged into GPT-2 through the attention interface.

    window   a token sees the `window` newest tokens, itself among them
    sparse   a token sees its own block, those before it up to `num_blocks` in all, and the first `num_global` tokens
             (Zaheer et al., "Big Bird", 2020, section 2, without random blocks, and causal)
    linear   no softmax: phi(q) . phi(k) with phi(x) = elu(x) + 1 (Katharopoulos et al., "Transformers are RNNs", 2020,
             eq. 7), so what was read is a state of fixed size (eq. 10 to 12)

Window and sparse gather, for each block of queries, the keys it may see, and give them to SDPA: the work grows with the
length, not with its square. Linear takes chunks: pairs within a chunk, and the state of all chunks before. Each has a
second path, over all pairs, for what has no such shape: a token that is decoded against stored keys, and padding.

This file stands alone: it is written beside the weights of a model that needs it, since `transformers` has no such
model. It is loaded from there with `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)`, or from
`codeparrot.attention` once that is imported. Without either, loading fails rather than attend to something else.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

FILE = "modeling_codeparrot.py"
"""The name of this file beside weights."""
PREFIX = "codeparrot-"
CHUNK = 64
"""Tokens whose pairs linear attention computes at once."""
SMALLEST_SUM = 1e-6


class CodeParrotConfig(GPT2Config):  # type: ignore[misc]
    """GPT-2 with another attention."""

    model_type = "codeparrot"

    attention_kind: str = "window"
    attention_window: int = 256
    """Tokens that are seen, for `window`."""
    attention_block: int = 64
    """Tokens of a block, for `sparse`."""
    attention_num_blocks: int = 4
    """Blocks that are seen."""
    attention_num_global: int = 32
    """First tokens, which all see."""


class Reach(NamedTuple):
    """What a token sees of those before it, as blocks."""

    block: int
    num_blocks: int
    num_global: int
    window: int | None

    def sees(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Whether queries at these positions see keys at these: bool, of the shapes broadcast."""
        if self.window is not None:
            return (key <= query) & (query - key < self.window)
        near = query // self.block - key // self.block < self.num_blocks
        return (key <= query) & (near | (key < self.num_global))


def reach_of(config: Any) -> Reach:
    """Of a `CodeParrotConfig`, for window and sparse."""
    if config.attention_kind == "window":
        return Reach(config.attention_window, 2, 0, config.attention_window)
    return Reach(config.attention_block, config.attention_num_blocks, config.attention_num_global, None)


def blocked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    reach: Reach,
    *,
    scale: float | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Causal attention within a reach, of a whole sequence: all tensors of shape (B, H, T, D)."""
    batch, heads, length, width = query.shape
    num, span, first = -(-length // reach.block), reach.num_blocks * reach.block, min(reach.num_global, length)
    right = num * reach.block - length

    def gathered(states: torch.Tensor) -> torch.Tensor:
        """What each block may see: (B num, H, first + span, D)."""
        local = F.pad(states, (0, 0, span - reach.block, right)).unfold(2, span, reach.block)  # (B, H, num, D, span)
        parts = [states[:, :, None, :first].expand(-1, -1, num, -1, -1), local.mT]
        return torch.cat(parts, 3).transpose(1, 2).reshape(batch * num, heads, first + span, width)

    device = query.device
    begins = torch.arange(num, device=device)[:, None] * reach.block  # (num, 1)
    places = begins + torch.arange(reach.block, device=device)  # (num, block): of queries
    local = begins + torch.arange(reach.block - span, reach.block, device=device)  # (num, span): of keys
    seen = reach.sees(places[:, :, None], local[:, None]) & (local >= first)[:, None]
    of_all = torch.arange(first, device=device) <= places[:, :, None]
    mask = torch.cat([of_all, seen], 2)[None].expand(batch, -1, -1, -1).reshape(batch * num, 1, reach.block, -1)
    queries = (
        F.pad(query, (0, 0, 0, right)).reshape(batch, heads, num, reach.block, width).transpose(1, 2).flatten(0, 1)
    )
    out = F.scaled_dot_product_attention(
        queries, gathered(key), gathered(value), attn_mask=mask, dropout_p=dropout, scale=scale
    )
    return out.view(batch, num, heads, reach.block, width).transpose(1, 2).flatten(2, 3)[:, :, :length]


def features(states: torch.Tensor) -> torch.Tensor:
    """phi(x) = elu(x) + 1, in fp32."""
    return F.elu(states.float()) + 1


def linear_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    state: torch.Tensor | None = None,
    kept: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention, state after it): tensors of shape (B, H, T, D), and (B, H, D, D + 1) in fp32.

    `state`: of what stands before, None: nothing. `kept`: which keys are no padding, (B, T), None: all. The last column
    of the state is the sum of features, which normalises.
    """
    batch, heads, length, _ = query.shape
    chunk = min(CHUNK, length)
    num = -(-length // chunk)
    q, k = features(query), features(key)
    if kept is not None:
        k = k * kept[:, None, :, None]
    v = torch.cat([value.float(), value.new_ones(batch, heads, length, 1, dtype=torch.float32)], 3)
    q, k, v = (_chunks(states, num, chunk) for states in (q, k, v))  # (B, H, num, chunk, D or D + 1)
    added = k.mT @ v  # (B, H, num, D, D + 1)
    before = added.cumsum(2) - added if state is None else added.cumsum(2) - added + state[:, :, None]
    pairs = (q @ k.mT).tril()
    out = pairs @ v + q @ before
    out = out[..., :-1] / out[..., -1:].clamp(min=SMALLEST_SUM)
    return out.flatten(2, 3)[:, :, :length].to(value.dtype), before[:, :, -1] + added[:, :, -1]


def _chunks(states: torch.Tensor, num: int, chunk: int) -> torch.Tensor:
    """Padded with zeros, which add nothing to a state."""
    batch, heads, length, width = states.shape
    return F.pad(states, (0, 0, 0, num * chunk - length)).reshape(batch, heads, num, chunk, width)


class Carried(NamedTuple):
    """New keys, and the layer that holds the state of those before."""

    keys: torch.Tensor
    layer: "StateLayer"


class StateLayer(CacheLayerMixin):  # type: ignore[misc]
    """What linear attention remembers of any number of tokens: (B, H, D, D + 1)."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.state: torch.Tensor | None = None
        self.cumulative_length = 0

    def lazy_initialization(self, *_: torch.Tensor) -> None:
        """The state comes with the first tokens."""
        self.is_initialized = True

    def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Hand the layer to the attention, which knows what is padding."""
        self.is_initialized = True
        self.cumulative_length += key_states.shape[2]
        return Carried(key_states, self), value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if all keys were there: a mask tells padding among the new ones."""
        return self.cumulative_length + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self.cumulative_length

    def get_max_length(self) -> int:
        """Without limit."""
        return -1

    def reset(self) -> None:
        """Forget all."""
        self.state, self.cumulative_length = None, 0

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Other rows, for beams."""
        if self.state is not None:
            self.state = self.state.index_select(0, beam_idx.to(self.state.device))


class StateCache(Cache):  # type: ignore[misc]
    """A cache whose size does not grow with the number of tokens, for `linear`."""

    def __init__(self, config: Any) -> None:
        super().__init__(layers=[StateLayer() for _ in range(config.num_hidden_layers)])


Returned = tuple[torch.Tensor, None]
"""(attention of shape (B, T, H, D), no weights), as the interface wants it."""


def _in_reach(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> Returned:
    reach = reach_of(module.config)
    if attention_mask is None and query.shape[2] == key.shape[2]:
        out = blocked_attention(query, key, value, reach, scale=scaling, dropout=dropout)
    else:
        mask = _visible(query, key, attention_mask)
        columns = torch.arange(key.shape[2], device=key.device)
        own = (mask * columns).amax(3, keepdim=True)  # a query sees itself, and nothing after
        first = mask.int().argmax(3, keepdim=True)
        mask = mask & reach.sees(own - first, columns - first)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling)
    return out.transpose(1, 2).contiguous(), None


def _visible(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """(B or 1, 1, queries, keys), bool; without a mask the queries are the last of the keys."""
    if mask is not None:
        return mask[..., : key.shape[2]] if mask.dtype == torch.bool else mask[..., : key.shape[2]] == 0
    num_queries, num_keys = query.shape[2], key.shape[2]
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=key.device)
    return ones.tril(num_keys - num_queries)[None, None]


def _linear(
    _module: nn.Module,
    query: torch.Tensor,
    key: "torch.Tensor | Carried",
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **_: Any,
) -> Returned:
    with torch.autocast(query.device.type, enabled=False):
        if isinstance(key, Carried):
            kept = None if attention_mask is None else attention_mask[:, 0, -1, -query.shape[2] :]
            out, key.layer.state = linear_attention(query, key.keys, value, state=key.layer.state, kept=kept)
        elif attention_mask is None and query.shape[2] == key.shape[2]:
            out, _state = linear_attention(query, key, value)
        else:
            weights = features(query) @ features(key).mT * _visible(query, key, attention_mask)
            out = (weights @ value.float() / weights.sum(3, keepdim=True).clamp(min=SMALLEST_SUM)).to(value.dtype)
    return out.transpose(1, 2).contiguous(), None


class CodeParrotForCausalLM(GPT2LMHeadModel):  # type: ignore[misc]
    """GPT-2 whose layers attend as the configuration says; the weights are GPT-2's."""

    config_class = CodeParrotConfig

    def __init__(self, config: CodeParrotConfig) -> None:
        config._attn_implementation = PREFIX + config.attention_kind
        config.auto_map = {
            "AutoConfig": f"{FILE.removesuffix('.py')}.{CodeParrotConfig.__name__}",
            "AutoModelForCausalLM": f"{FILE.removesuffix('.py')}.{type(self).__name__}",
        }
        super().__init__(config)

    def set_attn_implementation(self, attn_implementation: Any, *_: Any, **__: Any) -> None:
        """Raises ValueError for any but its own."""
        if attn_implementation != self.config._attn_implementation:
            raise ValueError(f"this model was trained with {self.config.attention_kind} attention and has no other")

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any) -> Any:
        given = model_kwargs.get("past_key_values") is not None or generation_config.cache_implementation
        if self.config.attention_kind == "linear" and generation_config.use_cache and not given:
            model_kwargs["past_key_values"] = StateCache(self.config)
        return super()._prepare_cache_for_generation(generation_config, model_kwargs, *args)


FUNCTIONS: dict[str, Callable[..., Returned]] = {"window": _in_reach, "sparse": _in_reach, "linear": _linear}

for _kind, _function in FUNCTIONS.items():
    AttentionInterface.register(PREFIX + _kind, _function)
    AttentionMaskInterface.register(PREFIX + _kind, sdpa_mask)
AutoConfig.register(CodeParrotConfig.model_type, CodeParrotConfig, exist_ok=True)
AutoModelForCausalLM.register(CodeParrotConfig, CodeParrotForCausalLM, exist_ok=True)
