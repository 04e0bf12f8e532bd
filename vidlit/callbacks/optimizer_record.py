"""What the optimizer does, in numbers: learning rate, norm of the gradient, and the loss of each bucket."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from vidlit.diffusion.batch import LatentBatch
from vidlit.lightning_internals import is_mid_step, logs_after_this_batch
from vidlit.runs.logged_names import GRADIENT_NORM, LEARNING_RATE, TRAIN_LOSS, TRAIN_LOSS_BUCKET
from vidlit.training.run_callback import RunCallback
from vidlit.training.step.numbers import StepReading


class _Step(NamedTuple):
    """An optimizer step whose numbers may still be on their way.

    Args:
        number: of the step.
        reading: its numbers.
        buckets: of its micro-batches; empty where there is one for all.
    """

    number: int
    reading: StepReading
    buckets: list[str]


class OptimizerRecord(RunCallback):
    """Logs what a step was made with, as often as Lightning logs; between two logs the device is not waited for.

    The bar shows the loss of the step before: that one's is known.

    - ``train/loss``: of the step's last micro-batch, mean over all ranks;
    - ``train/lr``: learning rate of the optimizer's first group of parameters; where a group has a ``name``, that of
      each as ``train/lr/<name>``, too;
    - ``train/grad_norm``: norm of the gradient over all ranks, before it is clipped;
    - ``train/loss_bucket_<bucket>``: loss of the batches of each bucket, mean since the last log; where there are
      several buckets.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._losses: dict[str, list[float]] = {}
        self._buckets: list[str] = []  # of the step's micro-batches
        self._has_buckets = False
        self._last: _Step | None = None

    def on_train_start(self, *_: Any) -> None:
        """Ask whether there are several buckets."""
        self._last = None
        self._has_buckets = len({clip.bucket for clip in self.data.train_clips}) > 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the rate of this step: when it is over, the schedule has gone on to the next."""
        if logs_after_this_batch(trainer):
            groups = optimizer.param_groups
            named = {f"{LEARNING_RATE.name}/{group['name']}": group["lr"] for group in groups if "name" in group}
            rates = {LEARNING_RATE.name: groups[0]["lr"], **named}
            self._rates = {name: float(rate) for name, rate in rates.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Keep the losses; log when it is time."""
        if self._has_buckets:  # at a step the same one on every rank
            self._buckets.append(str(self.data.train_clips[int(batch.indices[0])].bucket))
        if is_mid_step(trainer):
            return
        before, buckets, self._buckets = self._last, self._buckets, []
        self._last = _Step(trainer.global_step, self.module.numbers.last, buckets)
        if before is not None:
            self._take(before)
        if not logs_after_this_batch(trainer):
            if before is not None:  # for the bar
                self._log(before, {})
            return
        self._take(self._last)
        # A step that was left out, as its loss was NaN, does not count.
        means = {TRAIN_LOSS_BUCKET.at(name): float(np.nanmean(each)) for name, each in self._losses.items()}
        self._log(self._last, {**self._rates, GRADIENT_NORM.name: self.module.grad_norm, **means})
        self._losses, self._last = {}, None

    def _take(self, step: _Step) -> None:
        """Keep what the buckets of a step have lost."""
        for bucket, loss in zip(step.buckets, step.reading.losses, strict=False):
            self._losses.setdefault(bucket, []).append(loss)

    def _log(self, step: _Step, numbers: dict[str, float]) -> None:
        """Log a step's loss, and more."""
        losses = step.reading.losses  # a module of one's own may keep none
        loss = {TRAIN_LOSS.name: losses[-1]} if losses else {}
        # Lightning counts logged steps from 0 and once per batch; "step" in the log overrides that.
        self.log_numbers({"step": float(step.number), **loss, **numbers})
