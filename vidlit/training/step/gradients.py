"""What becomes of gradients between the backward pass and the optimizer: clipped, or dropped with their step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vidlit.errors import UserError


@dataclass(frozen=True)
class BadStepPolicy:
    """Treatment of steps whose loss or gradient is NaN or infinite.

    Args:
        action: whether to ``skip`` the step or ``stop`` the run.
        max_skipped: largest number of skipped steps; one more stops the run.

    Raises:
        UserError: an option is out of range.
    """

    action: Literal["skip", "stop"] = "skip"
    max_skipped: int = 10

    def __post_init__(self) -> None:
        if self.max_skipped < 0:
            raise UserError(f"model.bad_steps.max_skipped is {self.max_skipped}: it must be 0 or more.")


def clip_gradients(
    optimizer: Optimizer,
    clip_val: float | None,
    algorithm: str | None,
    read: Callable[[Tensor], float],
    *,
    drop_bad: bool,
) -> bool:
    """Clip, or drop all gradients where one is NaN or infinite: an optimizer does nothing without a gradient.

    The norm is over all ranks, so that all drop the same steps.

    Args:
        optimizer: whose parameters' gradients are clipped, in place.
        clip_val: largest norm, or largest value; ``None`` or 0 for no limit.
        algorithm: ``value``, else by norm.
        read: gives the value of the norm (), as it is before any clipping: it waits for the device.
        drop_bad: drop gradients whose norm is not finite.

    Returns:
        Whether the gradients were dropped.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
    dropped = not math.isfinite(read(norm.full_tensor() if isinstance(norm, DTensor) else norm)) and drop_bad
    if dropped:
        optimizer.zero_grad(set_to_none=True)
    elif clip_val and algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip_val)
    elif clip_val:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norm)
    return dropped
