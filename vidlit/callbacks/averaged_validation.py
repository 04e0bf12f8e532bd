"""Validates, samples and exports averaged weights, and trains on from the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vidlit.diffusion.batch import LatentBatch
from vidlit.training.run_callback import RunCallback


class AveragedValidation(RunCallback):
    """Puts the averaged weights in the trained ones' place while they are looked at: during validation, and at the end.

    The average is ``model.ema``'s, or a schedule-free optimizer's own. Does nothing where there is none. Comes before
    the callbacks that save, whose checkpoints hold both.
    """

    def __init__(self) -> None:
        self._trained: list[Tensor] = []
        self._seen_step = 0

    def on_train_start(self, *_: Any) -> None:
        """Tell a schedule-free optimizer that training begins."""
        self._seen_step = self.trainer.global_step
        if self.module.schedule_free is not None:
            self.module.schedule_free.train()

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Take the step into the average; one that was left out counts, too: to know of it would be to wait for it."""
        module = self.module
        stepped, self._seen_step = trainer.global_step > self._seen_step, trainer.global_step
        if stepped and module.ema is not None and module.averaged is not None:
            module.averaged.update(module.ema)

    @torch.no_grad()
    def on_validation_start(self, *_: Any) -> None:
        """Swap in."""
        if self.module.averaged is None:
            return
        self.module.refresh_average()
        self._trained = [parameter.clone() for parameter in self.module.averaged.trained()]
        self.module.averaged.copy_to_parameters()

    @torch.no_grad()
    def on_validation_end(self, *_: Any) -> None:
        """Swap back, bit for bit."""
        if self.module.averaged is not None:
            for parameter, trained in zip(self.module.averaged.trained(), self._trained, strict=True):
                parameter.copy_(trained)
        self._trained = []

    @contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Swap in for a look outside of a validation."""
        self.on_validation_start()
        try:
            yield
        finally:
            self.on_validation_end()

    def on_fit_end(self, *_: Any) -> None:
        """End with the average; ``OverfitStopping`` may put that of an earlier check back."""
        if self.module.averaged is not None:
            self.module.refresh_average()
            self.module.averaged.copy_to_parameters()
