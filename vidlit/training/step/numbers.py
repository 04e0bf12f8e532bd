"""What is read of a step, in one go: its losses come from the device with the norm of its gradient."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class StepReading:
    """Numbers of one step, on their way to main memory: whoever asks first waits until the device has made them.

    Who can ask a step later hardly waits, and the device works on meanwhile.

    Args:
        numbers: (micro-batches + 1,), the losses and the norm of the gradient.
        may_be_bad: whether a norm that is not finite means that the step was left out.
    """

    def __init__(self, numbers: Tensor, *, may_be_bad: bool = True) -> None:
        self._may_be_bad = may_be_bad
        self._arrival: Any = None
        self._numbers = numbers
        if numbers.is_cuda:  # elsewhere such a copy is not safe to read, or no faster
            self._numbers = numbers.to("cpu", non_blocking=True)
            cuda: Any = torch.cuda  # its events have no types
            self._arrival = cuda.Event()
            self._arrival.record()

    @cached_property
    def _values(self) -> list[float]:
        if self._arrival is not None:
            self._arrival.synchronize()
        values: list[float] = self._numbers.tolist()
        return values

    def wait(self) -> None:
        """Wait for the device now."""
        _ = self._values

    @property
    def losses(self) -> list[float]:
        """Of each micro-batch, mean over all ranks."""
        return self._values[:-1]

    @property
    def grad_norm(self) -> float:
        """Over all ranks, before it was clipped."""
        return self._values[-1]

    @property
    def was_bad(self) -> bool:
        """Whether the step was left out, as its loss or gradient was NaN or infinite."""
        return self._may_be_bad and not math.isfinite(self.grad_norm)


class StepNumbers:
    """Collects the losses of a step's micro-batches, and hands them over with the norm of the step's gradient."""

    def __init__(self) -> None:
        self.last = StepReading(torch.zeros(1))
        """Of the last optimizer step; before the first there are no losses."""
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Keep a micro-batch's loss () until its step is over."""
        self._waiting.append(loss.detach())

    def finish(self, norm: Tensor, trainer: Trainer, *, may_be_bad: bool) -> StepReading:
        """What is read of the step; nothing waits for it here.

        Args:
            norm: () of the gradient.
            trainer: whose ranks share the losses.
            may_be_bad: see :class:`StepReading`.
        """
        losses, self._waiting = self._waiting, []
        numbers = torch.stack([*losses, norm.to(losses[0].device)] if losses else [norm]).float()
        if trainer.world_size > 1 and losses:
            shared = trainer.strategy.reduce(numbers[:-1].clone(), reduce_op="mean")
            numbers = torch.cat([torch.as_tensor(shared), numbers[-1:]])
        self.last = StepReading(numbers, may_be_bad=may_be_bad)
        return self.last
