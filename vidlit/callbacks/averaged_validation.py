"""Validates, samples and exports averaged weights, and trains on from the weights themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from vidlit.diffusion.batch import LatentBatch

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


class AveragedValidation(Callback):
    """Puts the averaged weights in the trained ones' place while they are looked at: during validation, and at the end.

    The average is ``model.ema``'s, or a schedule-free optimizer's own. Does nothing where there is none. Comes before
    the callbacks that save, whose checkpoints hold both.
    """

    def __init__(self) -> None:
        self._trained: list[Tensor] = []
        self._seen_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Tell a schedule-free optimizer that training begins."""
        self._seen_step = trainer.global_step
        if pl_module.schedule_free is not None:
            pl_module.schedule_free.train()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: VideoDiffusionModule,  # type: ignore[override]
        outputs: STEP_OUTPUT,
        batch: LatentBatch,
        batch_idx: int,
    ) -> None:
        """Take the step into the average."""
        stepped, self._seen_step = trainer.global_step > self._seen_step, trainer.global_step
        if stepped and pl_module.ema is not None and pl_module.averaged is not None and not pl_module.step_was_bad:
            pl_module.averaged.update(pl_module.ema)

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Swap in."""
        if pl_module.averaged is None:
            return
        pl_module.refresh_average()
        self._trained = [parameter.clone() for parameter in pl_module.averaged.trained()]
        pl_module.averaged.copy_to_parameters()

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Swap back, bit for bit."""
        if pl_module.averaged is not None:
            for parameter, trained in zip(pl_module.averaged.trained(), self._trained, strict=True):
                parameter.copy_(trained)
        self._trained = []

    def on_fit_end(self, trainer: Trainer, pl_module: Any) -> None:
        """End with the average; ``OverfitStopping`` may put that of an earlier check back."""
        if pl_module.averaged is not None:
            pl_module.refresh_average()
            pl_module.averaged.copy_to_parameters()
