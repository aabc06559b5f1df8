"""How much of a machine training uses: floating-point operations per token, and what the machine can do at most."""

import time
from typing import TYPE_CHECKING

from codeparrot.precision import autocast

if TYPE_CHECKING:
    import transformers

NUM_TRIALS = 5
SIZE_CPU, SIZE_GPU = 768, 8192


def flops_per_token(
    config: "transformers.PreTrainedConfig", num_parameters: int, sizes: tuple[int, int] | None = None
) -> float:
    """Floating-point operations of a forward and a backward pass for one token of a row.

    6 N + 12 L T d (Chowdhery et al., PaLM, 2022, appendix B), with N without what is only looked up: position
    embeddings, and token embeddings that are not the output layer too. Activation checkpointing computes more, which
    does not count as useful. `sizes`: how many tokens of a row are read, and how many go through the output layer; of
    an encoder and a decoder, go through the first and through the second. Not given: all of a row.
    """
    length, width = config.max_position_embeddings, config.hidden_size
    looked_up = 0 if config.model_type in ("nanochat", "modernbert", "t5") else length * width
    if not config.tie_word_embeddings:
        looked_up += config.vocab_size * width
    read, written = sizes or (length, length)
    output = config.vocab_size * width
    layers = num_parameters - looked_up - output
    pairs = read * min(read, num_seen(config))  # of tokens that may see each other
    passed = layers * read
    if config.is_encoder_decoder:  # per layer, 12 width**2 in the encoder and 16 width**2 in the decoder
        pairs += written * written + read * written
        passed = (12 * read + 16 * written) * layers // 28
    return float((6 * (passed + output * written) + 12 * config.num_hidden_layers * width * pairs) / length)


def num_seen(config: "transformers.PreTrainedConfig") -> int:
    """T above: how many tokens each is compared with, those after it among them, as is usual; or what costs as much."""
    length = int(config.max_position_embeddings)
    kind = getattr(config, "attention_kind", None)
    if kind is None:
        return length
    from codeparrot import attention

    if kind == "linear":  # pairs in a chunk; the state, read and written
        return min(length, attention.CHUNK + int(config.hidden_size // config.num_attention_heads))
    reach = attention.reach_of(config)
    return min(length, reach.window or reach.num_blocks * reach.block + reach.num_global)


def peak_flops(device: str, precision: str) -> float:
    """The most floating-point operations per second of this process, measured: products of large square matrices."""
    import torch

    size = SIZE_GPU if device.startswith("cuda") else SIZE_CPU
    matrix = torch.randn(size, size, device=device)
    best = float("inf")
    with torch.no_grad(), autocast(precision, device):
        for _ in range(NUM_TRIALS):
            began = time.perf_counter()
            torch.mm(matrix, matrix).sum().item()  # the number is waited for
            best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
