"""How fast training is, and how much of its time it waits for data."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from vidlit.data.batch import LatentBatch


class Throughput(Callback):
    """Logs ``perf/samples_per_s``, ``perf/tokens_per_s`` (latent positions) and ``perf/data_wait`` (share of the time).

    Over all ranks, averaged since the last log; validation is not counted.
    """

    def __init__(self) -> None:
        self._reset(0.0)

    def _reset(self, now: float) -> None:
        self._samples = self._tokens = 0
        self._busy = self._waited = 0.0
        self._last_end = now

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._reset(time.monotonic())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Time since the last batch was spent waiting for this one."""
        self._began = time.monotonic()
        self._waited += self._began - self._last_end

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: LatentBatch, batch_idx: int
    ) -> None:
        """Count, and log as often as Lightning logs."""
        now = time.monotonic()
        self._busy += now - self._began
        self._last_end = now
        samples = len(batch.indices) * trainer.world_size
        self._samples += samples
        self._tokens += samples * batch.latents[0, 0].numel()
        log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Lightning's own counter decides when logged values reach the loggers.
        if (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % log_every == 0:
            seconds = max(1e-9, self._busy + self._waited)
            pl_module.log_dict(
                {
                    "perf/samples_per_s": self._samples / seconds,
                    "perf/tokens_per_s": self._tokens / seconds,
                    "perf/data_wait": self._waited / seconds,
                },
                batch_size=1,
            )
            self._reset(now)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the validation out."""
        self._last_end = time.monotonic()
