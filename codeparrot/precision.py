"""The arithmetic of a training step: fp32, or bf16 where the device computes in it."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

logger = logging.getLogger(__name__)


def choose_precision(wanted: str, device: str) -> str:
    """fp32 or bf16. `auto` is bf16 on a GPU that computes in it, and fp32 on a CPU.

    A CPU that only emulates bf16 is 40 to 500 times slower with it: there it is replaced.
    """
    import torch

    if device.startswith("cuda"):
        return "bf16" if wanted != "fp32" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    capable = cpu_computes_bf16()
    if wanted == "bf16" and not capable:
        logger.warning("train.precision: this CPU has no bf16 arithmetic (avx512_bf16 or AMX); using fp32 instead")
    return "bf16" if wanted == "bf16" and capable else "fp32"


def cpu_computes_bf16() -> bool:
    """Whether this CPU has instructions for bf16 products."""
    import torch

    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: str, device: str) -> AbstractContextManager[Any]:
    """The context in which a forward pass runs in this precision; weights and optimizer stay in fp32."""
    import torch

    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.split(":")[0], dtype=torch.bfloat16)
