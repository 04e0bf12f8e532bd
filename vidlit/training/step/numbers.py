"""What is read of a step, in one go: its losses come from the device with the norm of its gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class StepNumbers:
    """Numbers of the last optimizer step, on the CPU.

    A device is waited for once a step, for the norm of its gradient: nothing else can say whether the step counts.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        """Of each micro-batch, mean over all ranks."""
        self.grad_norm = 0.0
        """Over all ranks, before it was clipped."""
        self._waiting: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Keep a micro-batch's loss () until its step is read."""
        self._waiting.append(loss.detach())

    def read(self, norm: Tensor, trainer: Trainer) -> float:
        """Wait for the device; the norm.

        Args:
            norm: () of the gradient.
            trainer: whose ranks share the losses.
        """
        losses, self._waiting = self._waiting, []
        numbers = torch.stack([*losses, norm.to(losses[0].device)] if losses else [norm]).float()
        if trainer.world_size > 1 and losses:
            shared = trainer.strategy.reduce(numbers[:-1].clone(), reduce_op="mean")
            numbers = torch.cat([torch.as_tensor(shared), numbers[-1:]])
        *self.losses, self.grad_norm = numbers.tolist()
        return self.grad_norm
