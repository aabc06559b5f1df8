"""What a training run is: its settings, its inputs, who watches over it, and where it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field, PositiveInt, model_validator

from codeparrot.checkpoint import CheckpointStore
from codeparrot.checkpoint_writer import CheckpointSettings, CheckpointWriter
from codeparrot.data_order import Order
from codeparrot.dataloader import CACHE_BYTES, PackedRows, Rows, batch_of
from codeparrot.model import ModelSettings
from codeparrot.objectives import Arrays, Causal, Objective
from codeparrot.optimizer import OptimizerSettings
from codeparrot.parallel import Agreement, ParallelKind, World
from codeparrot.settings import Resources
from codeparrot.stopwatch import Stopwatch

if TYPE_CHECKING:
    import torch
    from torch import nn

Int64 = npt.NDArray[np.int64]
Numbers = Sequence[int] | Int64
OPERATIONAL = {
    "num_workers",
    "min_workers",
    "micro_batch_size",
    "parallel",
    "compile",
    "activation_checkpointing",
    "log_every_steps",
    "eval_every_steps",
    "eval_rows",
    "checkpoint",
    "any_code_version",
    "cache_bytes",
    "max_failures",
    "resources_per_worker",
    "use_gpu",
    "placement_timeout_seconds",
}
"""Settings that do not shape the trained model, but for rounding: they may change between the attempts of a run."""
EVALUATIONS = {"eval_every_steps", "eval_rows"}


class TrainSettings(OptimizerSettings):
    """One training run."""

    max_steps: PositiveInt
    global_batch_size: PositiveInt
    """Rows of one step over all ranks."""
    micro_batch_size: PositiveInt
    """Most rows of one forward pass on one rank."""
    num_workers: PositiveInt = 4
    """Ray Train workers, one rank each."""
    min_workers: PositiveInt | None = None
    """Train with as few as this while the cluster has no room for `num_workers`, and with more when it has again;
    null: wait for room for all. The same rows and losses, but for rounding."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU that computes in it, else fp32."""
    parallel: ParallelKind = "ddp"
    """ddp: the whole model on every rank. fsdp: sharded, for models that do not fit on one device."""
    compile: bool = False
    """Compile the model: pays for large models on GPUs, not for small ones on CPUs."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more work."""
    mixture: dict[str, PositiveInt] | None = None
    """Packed corpora by their prefix in the store, and how often each comes among the rows, as whole numbers:
    `{packed: 3, docs/packed: 1}`. All must be packed with this run's tokenizer; `packed` is the run's own, which also
    has the validation rows. null: that one alone."""
    shuffle_shards: PositiveInt = 16
    """Packed shards whose rows are shuffled together; the local cache holds two times as many."""
    cache_bytes: PositiveInt = CACHE_BYTES
    """Of packed shards on the local disk of a node."""
    log_every_steps: PositiveInt = 10
    eval_every_steps: PositiveInt = 100
    eval_rows: PositiveInt = 256
    """Rows of the validation split, evenly spread, to evaluate during training."""
    early_stop_evaluations: PositiveInt | None = None
    """End when so many evaluations in a row have brought no lower validation loss; null: never."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest validation loss, and export that one."""
    checkpoint: CheckpointSettings = CheckpointSettings()
    any_code_version: bool = False
    """Continue from checkpoints that another version of this project's code has made."""
    max_failures: int = Field(default=3, ge=0)
    """Failures of the worker group, one after another without a new checkpoint, before training is given up."""
    resources_per_worker: Resources = {"CPU": 1}
    """Ray resources of one worker; fractions let four workers share two cores."""
    use_gpu: bool = False
    placement_timeout_seconds: float = Field(default=30, gt=0)
    """How long to wait for the cluster to have room for all workers; with `min_workers`, before taking fewer."""

    @model_validator(mode="after")
    def _enough_rows(self) -> "TrainSettings":
        if self.global_batch_size < self.num_workers:
            raise ValueError(
                f"global_batch_size ({self.global_batch_size}) must be at least num_workers ({self.num_workers})"
            )
        if self.optimizer == "muon" and self.parallel == "fsdp":
            raise ValueError("optimizer muon needs whole matrices on every rank: set parallel to ddp")
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers ({self.min_workers}) must be at most num_workers ({self.num_workers})")
        return self

    def identity(self) -> dict[str, Any]:
        """The settings that shape the trained model."""
        chooses = self.keep_best or self.early_stop_evaluations is not None  # by the evaluations, which then matter
        return self.model_dump(mode="json", exclude=OPERATIONAL - (EVALUATIONS if chooses else set()))


class Supervisor(Protocol):
    """Whoever runs the ranks: is told what happens, and may end training early."""

    def observe(self, event: Mapping[str, Any]) -> None:
        """Receives {"kind": "step" | "evaluation" | "checkpoint" | ..., "step": ..., ...}. On rank 0 only."""

    def stop_requested(self) -> bool:
        """Whether training is to end after a checkpoint. Asked at every step, so it must not wait."""

    def preempted(self) -> bool:
        """The same, for a node that is about to go. Collective: asked on all ranks at the same step, now and then."""

    def guard(self) -> None:
        """Raise LeaseLost if this attempt may not commit any more."""


class Unsupervised:
    """One process that nobody watches."""

    def observe(self, event: Mapping[str, Any]) -> None:
        """Nobody looks."""

    def stop_requested(self) -> bool:
        return False

    def preempted(self) -> bool:
        return False

    def guard(self) -> None:
        """Nobody else writes."""


@dataclass(frozen=True)
class TrainingJob:
    """Everything a training run needs to know."""

    model: ModelSettings
    train: TrainSettings
    seed: int
    vocab_size: int
    eos_token_id: int
    rows: Rows
    validation: PackedRows
    checkpoints: CheckpointStore
    objective: Objective = Causal()  # noqa: RUF009 - it has no state

    def batch(
        self, rows: Rows, indices: Numbers, device: str, seed: int, positions: Numbers
    ) -> "tuple[torch.Tensor, ...]":
        """What is asked of these rows, at these positions in training, on the device: what the loss is called with."""

        def ask(ids: Int64, lengths: Int64 | None) -> Arrays:
            return self.objective.ask(ids, lengths, seed, positions)

        return batch_of(rows, indices, device, ask, within_documents=self.model.attention == "document")


@dataclass
class Trainer:
    """A model, its optimizer and where they are in the run."""

    job: TrainingJob
    world: World
    supervisor: Supervisor
    agreement: Agreement
    order: Order
    model: "nn.Module"
    parallel: Any
    """What to call with a batch for its loss: the model in `codeparrot.loss`, and that in DDP, FSDP or compiled."""
    optimizer: "torch.optim.Optimizer"
    precision: str
    writer: CheckpointWriter
    bad_step: "torch.Tensor"
    """On the device: the first step whose gradient was not finite, or -1."""
    flops_per_token: float
    peak_flops: float = 1.0
    """Per second, of all ranks together."""
    step: int = 0
    """Steps done so far."""
    stopped: bool = False
    """Whether it was asked to end before the last step."""
    rows_digest: str = ""
    """A hash chain over the row numbers of all steps so far: two runs that share it saw the same rows in order."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """Logged events up to `step`; part of every checkpoint, so a resumed curve has no gap and no repetition."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    """Since the last log line."""
    host: "dict[str, torch.Tensor]" = field(default_factory=dict)
    """Memory for the copies of checkpoints."""

    def evaluations(self) -> list[tuple[int, float]]:
        """(step, validation loss) of every evaluation so far."""
        return [(event["step"], event["validation_loss"]) for event in self.history if event["kind"] == "evaluation"]

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss so far, the first of equal ones."""
        return min(self.evaluations(), key=lambda evaluation: (evaluation[1], evaluation[0]), default=(None, 0.0))[0]

    @property
    def has_ended(self) -> bool:
        """Whether all steps are done, or further ones bring nothing. A function of the history, so it is resumable."""
        patience = self.job.train.early_stop_evaluations
        steps = [step for step, _ in self.evaluations()]
        stale = (
            patience is not None
            and self.best_step is not None
            and len(steps) - 1 - steps.index(self.best_step) >= patience
        )
        return stale or self.step >= self.job.train.max_steps
