"""What a training run will take, before it is started: parameters, arithmetic, memory of a worker, time and money.

Memory is that of tensors at the fullest moment of a step. Beside it lies what the process itself takes (imports: 0.8
GB on a CPU; a context of some hundred MB on a GPU), what the allocator cannot use, and on the host the copy of a
checkpoint. Counted for P parameters, L layers of width h with a heads, vocabulary V, n tokens in a micro-batch, and
elements of e bytes (4; 2 in bf16, where weights, gradients, moments, norms and the residual stream stay in fp32):

    weights       4 P; in bf16 also 24 L h^2, a copy of all matrices, which autograd keeps for the backward pass
    gradients     4 P; 8 P under DDP with several micro-batches in a step; and, while both uses of the tied embedding
                  have one of their own, 2 x 4 V h beside it
    optimizer     8 P, the moments of AdamW
    activations   n L (8 h + 14 h e + 4 a + 16): Korthikanti et al., "Reducing Activation Recomputation in Large
                  Transformer Models" (2022), section 4.1: inputs of two norms (theirs 4 h, here in fp32) and their
                  statistics, inputs of the four products (h, h, h, 4 h) and of the activation function (4 h), and q, k
                  and v (3 h). Of attention SDPA keeps the logarithms of its sums, 4 a, not the 5 a s of their eq. 1;
                  there are no dropout masks by default. With activation checkpointing, 4 n L h, the inputs of the
                  layers (their section 5), and one layer computed again.
    the loss      its own gradients, 4 n h + 4 V h, made in the forward pass (`codeparrot.loss`), and one chunk of
                  logits. It counts as activations.

FSDP divides the first three by the number of workers. A whole copy of the embeddings and of two layers is gathered at
a time, and gradients are whole between the micro-batches of a step, for only the last one exchanges them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from codeparrot.model import ModelSettings, model_config, num_parameters
from codeparrot.parallel import ParallelKind
from codeparrot.throughput import flops_per_token
from codeparrot.training_job import TrainSettings

FP32, BF16 = 4, 2
"""Bytes of a number."""
MASK_BYTES = 1
"""Of an element that dropout decides on."""
MFU = 0.4
"""Of what a GPU can do, a usual share for GPT-2's sizes; the log lines of training tell the real one."""
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class Accelerator:
    """A device, as its maker describes it."""

    name: str
    flops: float
    """Dense bf16 operations per second."""
    memory_bytes: float


ACCELERATORS: Mapping[str, Accelerator] = {
    "l4": Accelerator("NVIDIA L4", 121e12, 24e9),
    "a10": Accelerator("NVIDIA A10", 125e12, 24e9),
    "l40s": Accelerator("NVIDIA L40S", 362e12, 48e9),
    "a100-40gb": Accelerator("NVIDIA A100 40 GB", 312e12, 40e9),
    "a100": Accelerator("NVIDIA A100 80 GB", 312e12, 80e9),
    "h100": Accelerator("NVIDIA H100 SXM", 989e12, 80e9),
    "h200": Accelerator("NVIDIA H200", 989e12, 141e9),
    "b200": Accelerator("NVIDIA B200", 2250e12, 180e9),
    "mi300x": Accelerator("AMD Instinct MI300X", 1307e12, 192e9),
}
"""By the name for the command line. Data sheets of the makers, without sparsity."""


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors that one worker holds at one moment of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Size:
    """A model and the work of training it."""

    num_parameters: int
    flops_per_token: float
    """Forward and backward pass (`codeparrot.throughput`)."""
    tokens: int
    """That training sees."""
    tokens_per_step: int

    @property
    def flops(self) -> float:
        """Of the whole training."""
        return self.flops_per_token * self.tokens

    def hours(self, flops_per_second: float, mfu: float) -> float:
        """Of training on devices that can do so many operations together, if it uses this share of them."""
        return self.flops / (flops_per_second * mfu) / SECONDS_PER_HOUR


def size_of(model: ModelSettings, train: TrainSettings, *, vocab_size: int, max_seq_len: int) -> Size:
    """Counted on the meta device, which allocates nothing."""
    config = model_config(model, vocab_size=vocab_size, max_seq_len=max_seq_len, eos_token_id=0)
    parameters = num_parameters(config)
    tokens_per_step = train.global_batch_size * max_seq_len
    return Size(parameters, flops_per_token(config, parameters), train.max_steps * tokens_per_step, tokens_per_step)


@dataclass(frozen=True)
class Layout:
    """How a model is trained, as far as memory goes."""

    model: ModelSettings
    vocab_size: int
    max_seq_len: int
    micro_batch_size: int
    """Rows of a forward pass; the last one of a step may have fewer."""
    num_micro_batches: int
    """Of one rank in a step."""
    num_workers: int
    parallel: ParallelKind
    activation_checkpointing: bool
    precision: str
    device: str

    @property
    def embedding_parameters(self) -> int:
        return (self.vocab_size + self.max_seq_len) * self.model.n_embd

    @property
    def layer_parameters(self) -> int:
        """Matrices, biases and norms of one layer of GPT-2."""
        return 12 * self.model.n_embd**2 + 13 * self.model.n_embd

    @property
    def num_parameters(self) -> int:
        return self.embedding_parameters + self.model.n_layer * self.layer_parameters + 2 * self.model.n_embd

    @property
    def shards(self) -> int:
        return self.num_workers if self.parallel == "fsdp" else 1


def layout_of(
    model: ModelSettings, train: TrainSettings, *, vocab_size: int, max_seq_len: int, precision: str, device: str
) -> Layout:
    """The layout of a recipe's training in this precision on this kind of device, `cpu` or `cuda`."""
    rows = math.ceil(train.global_batch_size / train.num_workers)
    return Layout(
        model,
        vocab_size,
        max_seq_len,
        min(rows, train.micro_batch_size),
        math.ceil(rows / train.micro_batch_size),
        train.num_workers,
        train.parallel,
        train.activation_checkpointing,
        precision,
        device,
    )


def memory(layout: Layout) -> Memory:
    """What a worker holds at the fullest moment of a step."""
    return max(_moments(layout), key=lambda moment: moment.total)


def _moments(layout: Layout) -> Iterator[Memory]:
    """The moments of a step that can be the fullest, in order."""
    from codeparrot.loss import CHUNK_BYTES

    h, layers = layout.model.n_embd, layout.model.n_layer
    element = BF16 if layout.precision == "bf16" else FP32
    states = layout.micro_batch_size * layout.max_seq_len * h  # elements of one state of every token
    embedding = FP32 * layout.vocab_size * h
    weights = FP32 * layout.num_parameters / layout.shards + _gathered(layout)
    optimizer = 2 * FP32 * layout.num_parameters / layout.shards
    held, all_gradients = _gradients(layout)
    copies = 0 if element == FP32 else element * 12 * h**2 * layers
    kept, one_layer = _kept(layout)
    again = copies / layers if layout.activation_checkpointing else copies
    logits = FP32 * layout.micro_batch_size * layout.max_seq_len * layout.vocab_size
    chunk = min(logits, CHUNK_BYTES[layout.device]) * (1 if element == FP32 else 1.5)
    cast = 0 if element == FP32 else 2 * element * layout.vocab_size * h

    # The loss: inputs of the last norm, its output, a copy of it, and the gradients by it and by the output matrix.
    yield Memory(weights + copies, held, optimizer, kept + 4 * FP32 * states + embedding + chunk + cast)
    # Its backward pass: both gradients, and their products with the outer one.
    yield Memory(
        weights + (0 if layout.activation_checkpointing else copies),
        held + embedding,
        optimizer,
        kept + 3 * FP32 * states + embedding,
    )
    # The last layer, all others still to come: a gradient of the residual stream and one within the MLP.
    residual = FP32 * states + (0 if element == FP32 else element * states)
    yield Memory(weights + again, held + embedding, optimizer, kept + one_layer + residual + 4 * element * states)
    # The embeddings: all gradients, and two of the tied one.
    yield Memory(weights, all_gradients + 2 * embedding, optimizer, FP32 * states)


def _kept(layout: Layout) -> tuple[float, float]:
    """(what the forward pass keeps of all layers, what of one layer is computed again beside it), in bytes."""
    h, n = layout.model.n_embd, layout.micro_batch_size * layout.max_seq_len
    element = BF16 if layout.precision == "bf16" else FP32
    layer = n * (2 * FP32 * h + 14 * element * h + 4 * layout.model.n_head + 16)
    if layout.model.attention == "eager":  # the softmax, in fp32, and its copy in bf16
        layer += n * layout.model.n_head * layout.max_seq_len * (FP32 + (0 if element == FP32 else element))
    if layout.model.dropout:
        layer += n * 2 * h * MASK_BYTES
    if layout.activation_checkpointing:
        return layout.model.n_layer * FP32 * n * h, layer
    return layout.model.n_layer * layer, 0


def _gathered(layout: Layout) -> float:
    """What FSDP puts together at a time: the embeddings for the whole pass, a layer, and the next one."""
    if layout.shards == 1:
        return 0
    return FP32 * (layout.embedding_parameters + 2 * layout.model.n_embd + 2 * layout.layer_parameters)


def _gradients(layout: Layout) -> tuple[float, float]:
    """(those held when the last backward pass begins, those at its end but for the tied embedding's own), in bytes."""
    whole = FP32 * layout.num_parameters
    embedding = FP32 * layout.vocab_size * layout.model.n_embd
    accumulates = layout.num_micro_batches > 1
    if layout.shards > 1:
        sharded = whole / layout.shards
        return (whole, whole) if accumulates else (0, sharded + 2 * FP32 * layout.layer_parameters)
    if layout.num_workers > 1:  # DDP's buckets stay; what is added up before the exchange lies beside them
        return (2 if accumulates else 1) * whole, (2 if accumulates else 1) * whole
    return (whole, whole) if accumulates else (0, whole - embedding)
