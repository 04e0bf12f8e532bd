"""What becomes of gradients between the backward pass and the optimizer: clipped, or dropped with their step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from vidlit.errors import UserError
from vidlit.training.optimizers import plain
from vidlit.training.step.numbers import StepReading


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


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """Norm () of the gradient of all parameters, over all ranks, so that all leave out the same steps."""
    gradients = [parameter.grad for parameter in _trained(optimizer) if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def leave_out_bad(optimizer: Optimizer, norm: Tensor, reading: StepReading) -> None:
    """Have an optimizer change nothing in this step where its gradient is NaN or infinite.

    torch's fused optimizers are told by a number on the device, which is what ``GradScaler`` does: nothing waits. With
    others the norm is read, and gradients are dropped: an optimizer does nothing without one.

    Args:
        optimizer: that will step.
        norm: of its gradient.
        reading: of the step.
    """
    own = plain(optimizer)
    if getattr(own, "_step_supports_amp_scaling", False):
        own.grad_scale, own.found_inf = None, norm.isfinite().logical_not().float()
    elif reading.was_bad:
        optimizer.zero_grad(set_to_none=True)


def clip_gradients(optimizer: Optimizer, norm: Tensor, clip_val: float | None, algorithm: str | None) -> None:
    """Clip, in place.

    Args:
        optimizer: whose parameters' gradients are clipped.
        norm: of their gradient.
        clip_val: largest norm, or largest value; ``None`` or 0 for no limit.
        algorithm: ``value``, else by norm.
    """
    parameters = _trained(optimizer)
    if clip_val and algorithm == "value":
        torch.nn.utils.clip_grad_value_(parameters, clip_val)
    elif clip_val:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norm)


def _trained(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
