"""The state of a training run: to the host for a checkpoint, and back.

The parts are dealt to the ranks by size, so each copies and writes its share only. They hold whole tensors whatever
the layout (one process, DDP, FSDP), so a run continues with any number of workers and any layout.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from codeparrot.checkpoint import Checkpoint, pack_tensors, shares
from codeparrot.errors import CheckpointError
from codeparrot.parallel import World, like, whole

if TYPE_CHECKING:
    import torch
    from torch import nn

MOMENTS = ("step", "exp_avg", "exp_avg_sq", "momentum")
"""What an optimizer keeps of a parameter: AdamW the first three, Muon the last."""


def snapshot(
    model: "nn.Module",
    optimizer: "torch.optim.Optimizer",
    world: World,
    others: Mapping[str, bytes],
    host: "dict[str, torch.Tensor]",
) -> Callable[[], Mapping[str, bytes]]:
    """A copy of this rank's share on the host; calling it gives the files of this rank's part. Collective.

    `others`: files that rank 0 adds. `host`: the memory of the copies, filled at the first call and used again by
    later ones, since fresh memory costs more than the copy; so one snapshot at a time.
    """
    parameters = dict(model.named_parameters())
    dealt = shares({name: parameter.numel() for name, parameter in parameters.items()}, world.world_size)
    mine = set(dealt[world.rank])
    kinds: dict[str, dict[str, torch.Tensor]] = {"model": {}, "optimizer": {}}
    for kind, name, tensor in _tensors(parameters, optimizer):
        value = whole(tensor.detach())
        if name.partition(":")[0] in mine:
            kinds[kind][name] = _host_copy(value, host, f"{kind}:{name}")
    event = _copied(world)
    part = f"{world.rank:05d}-of-{world.world_size:05d}.safetensors"

    def files() -> Mapping[str, bytes]:
        if event is not None:
            event.synchronize()
        packed = {f"{kind}-{part}": pack_tensors(tensors) for kind, tensors in kinds.items()}
        return {**packed, **others} if world.is_first else packed

    return files


def _tensors(
    parameters: Mapping[str, "torch.Tensor"], optimizer: "torch.optim.Optimizer"
) -> "Iterator[tuple[str, str, torch.Tensor]]":
    """(kind, name, tensor) in the same order on all ranks."""
    for name, parameter in parameters.items():
        yield "model", name, parameter
        kept = optimizer.state[parameter]
        for moment in MOMENTS:
            if moment in kept:
                yield "optimizer", f"{name}:{moment}", kept[moment]


def _host_copy(tensor: "torch.Tensor", host: "dict[str, torch.Tensor]", name: str) -> "torch.Tensor":
    import torch

    if name not in host:
        host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type != "cpu")
    return host[name].copy_(tensor, non_blocking=True)


def _copied(world: World) -> Any:
    """An event after the copies of this stream, or None where copies are done when they return."""
    import torch

    if not world.device.startswith("cuda"):
        return None
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event


def state_json(values: Mapping[str, Any]) -> bytes:
    """`train_state.json`: what is not a tensor."""
    import torch

    return json.dumps({**values, "versions": {"torch": str(torch.__version__)}}, indent=1, sort_keys=True).encode()


def restore(model: "nn.Module", optimizer: "torch.optim.Optimizer", checkpoint: Checkpoint) -> None:
    """Put a checkpoint's tensors in the place of a model's and its optimizer's. Raises CheckpointError."""
    import torch

    parameters = dict(model.named_parameters())
    found: set[str] = set()
    with torch.no_grad():
        for name, tensor in checkpoint.tensors("model"):
            parameters[name].copy_(like(tensor, parameters[name]))
            found.add(name)
        for name, tensor in checkpoint.tensors("optimizer"):
            parameter, _, moment = name.partition(":")
            owner = parameters[parameter]
            placed = tensor.to(owner.device) if moment == "step" else like(tensor, owner)
            optimizer.state[owner][moment] = placed
    if found != set(parameters):
        raise CheckpointError(f"{checkpoint.uri} lacks {', '.join(sorted(set(parameters) - found)[:3])}")
