"""Ranks that train together: DDP or FSDP2 around a model, and how ranks agree.

`ddp` keeps the whole model on every rank; `fsdp` shards weights, gradients and optimizer state over the ranks, for
models that do not fit on one device (Zhao et al., "PyTorch FSDP", 2023). Seen from outside they do the same:
gradients are averaged over the ranks in the last micro-batch of a step.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from codeparrot.model import architecture_of

if TYPE_CHECKING:
    import torch
    from torch import nn

T = TypeVar("T")

ParallelKind = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class World:
    """This process among all that train."""

    rank: int = 0
    world_size: int = 1
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0


def parallelize(
    model: "nn.Module", kind: ParallelKind, world: World, batch: "Sequence[torch.Tensor]", *, compile: bool
) -> Any:
    """What to call with a batch for its loss (`codeparrot.loss`); its parameters are the model's.

    `batch`: any.
    """
    import torch
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    from codeparrot.loss import loss_of

    loss = loss_of(model)
    if world.world_size > 1:
        assert distributed.is_initialized(), "the process group of the ranks must exist before fit()"
    if world.world_size > 1 and kind == "fsdp":
        _shard(loss, world)
    callee: Any = torch.compile(loss) if compile else loss
    if world.world_size > 1 and kind == "ddp":
        callee = DistributedDataParallel(callee, gradient_as_bucket_view=True)
        _settle_buckets(callee, batch)
    return callee


def _shard(loss: "nn.Module", world: World) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(world.device.split(":")[0], (world.world_size,))
    model: Any = loss.get_submodule("model")
    for name in architecture_of(model.config).blocks:
        for block in model.get_submodule(name):
            fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)


def _settle_buckets(parallel: "nn.Module", batch: "Sequence[torch.Tensor]") -> None:
    """One backward pass whose gradients are thrown away.

    DDP orders its gradient buckets anew after the first backward pass of a process, and a sum over ranks depends on
    where in a bucket a gradient lies, in the last bit. Without this, the first step after a restart would differ from
    the same step of an undisturbed run.
    """
    parallel(*batch).backward()
    parallel.zero_grad(set_to_none=True)


@contextmanager
def exchanging(parallel: Any, now: bool) -> Iterator[None]:
    """A micro-batch; its gradients, with those before it, are averaged over the ranks only if `now`."""
    if hasattr(parallel, "set_requires_gradient_sync"):  # FSDP2
        parallel.set_requires_gradient_sync(now)
        yield
    elif hasattr(parallel, "no_sync") and not now:  # DDP
        with parallel.no_sync():
            yield
    else:
        yield


def reshard(parallel: "nn.Module") -> None:
    """After forward passes without a backward one: give up what FSDP2 has gathered, so parameters are shards again."""
    for module in parallel.modules():
        gathered: Any = module
        if hasattr(gathered, "reshard"):
            gathered.reshard()


def whole(tensor: "torch.Tensor") -> "torch.Tensor":
    """The tensor, put together from the shards of all ranks if it is sharded. Collective."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def like(values: "torch.Tensor", tensor: "torch.Tensor") -> "torch.Tensor":
    """`values`, whole on every rank, laid out as `tensor` is: on its device, sharded if it is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(tensor, DTensor):
        whole_values, mesh = values.to(tensor.device), tensor.device_mesh
        return distribute_tensor(whole_values, mesh, tensor.placements, src_data_rank=None)
    return values.to(tensor.device)


def sum_over_ranks(value: "torch.Tensor", world: World) -> "torch.Tensor":
    """The value, which becomes the sum of those of all ranks. Collective."""
    from torch import distributed

    if world.world_size > 1:
        distributed.all_reduce(value)
    return value


class Agreement:
    """What all ranks know at the same step, without waiting for one another.

    Flags travel beside the step that follows them, over a group of their own on the host, so nothing on the device
    is waited for.
    """

    def __init__(self, world: World) -> None:
        from torch import distributed

        self._group: Any = distributed.new_group(backend="gloo") if world.world_size > 1 else None
        self._flags: Any = None
        self._pending: Any = None

    def exchange(self, *flags: bool) -> tuple[bool, ...]:
        """Offer flags; returns for each whether any rank had offered it in the call before. Collective."""
        import torch
        from torch import distributed

        if self._pending is not None:
            self._pending.wait()
        seen = tuple(map(bool, self._flags.tolist())) if self._flags is not None else (False,) * len(flags)
        self._flags = torch.tensor(flags, dtype=torch.int32)
        if self._group is not None:
            self._pending = distributed.all_reduce(
                self._flags, distributed.ReduceOp.MAX, group=self._group, async_op=True
            )
        return seen

    def close(self) -> None:
        """End it, and its threads: what is under way must not outlive the process group. Collective."""
        from torch import distributed

        if self._group is not None:
            if self._pending is not None:
                self._pending.wait()
            distributed.destroy_process_group(self._group)
            self._group = self._pending = None  # its threads end with the last reference to it

    def from_first(self, value: T) -> T:
        """The value of rank 0, on all ranks. Collective."""
        return self.all(value)[0]

    def all(self, value: T) -> list[T]:
        """The values of all ranks, by rank. Collective."""
        from torch import distributed

        if self._group is None:
            return [value]
        values: list[Any] = [None] * distributed.get_world_size(self._group)
        distributed.all_gather_object(values, value, group=self._group)
        return values
