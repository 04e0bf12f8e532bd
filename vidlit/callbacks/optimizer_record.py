"""What the optimizer does, in numbers: learning rate, norm of the gradient, and the loss of each bucket."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from vidlit.diffusion.batch import LatentBatch
from vidlit.lightning_internals import is_mid_step, logs_after_this_batch
from vidlit.runs.logged_names import GRADIENT_NORM, LEARNING_RATE, TRAIN_LOSS_BUCKET
from vidlit.training.run_callback import RunCallback


class OptimizerRecord(RunCallback):
    """Logs what a step was made with, as often as Lightning logs; no device is waited for in between.

    - ``train/lr``: learning rate of the optimizer's first group of parameters; where a group has a ``name``, that of
      each as ``train/lr/<name>``, too;
    - ``train/grad_norm``: norm of the gradient over all ranks, before it is clipped;
    - ``train/loss_bucket_<bucket>``: loss of the batches of each bucket, mean since the last log; where there are
      several buckets.
    """

    def __init__(self) -> None:
        self._rates: dict[str, float] = {}
        self._losses: dict[str, list[Tensor]] = {}
        self._has_buckets = False

    def on_train_start(self, *_: Any) -> None:
        """Ask whether there are several buckets."""
        self._has_buckets = len({clip.bucket for clip in self.data.train_clips}) > 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take the rate of this step: when it is over, the schedule has gone on to the next."""
        if logs_after_this_batch(trainer):
            groups = optimizer.param_groups
            named = {f"{LEARNING_RATE.name}/{group['name']}": group["lr"] for group in groups if "name" in group}
            rates = {LEARNING_RATE.name: groups[0]["lr"], **named}
            self._rates = {name: float(rate) for name, rate in rates.items()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Keep the loss; log when it is time."""
        if self._has_buckets:  # at a step the same one on every rank
            bucket = self.data.train_clips[int(batch.indices[0])].bucket
            self._losses.setdefault(str(bucket), []).append(outputs.get("of_clips", outputs["loss"]).detach())
        if is_mid_step(trainer) or not logs_after_this_batch(trainer):
            return
        self.module.log_dict({**self._rates, GRADIENT_NORM.name: self.module.grad_norm}, batch_size=1)
        if self._losses:
            # A step that was left out, as its loss was NaN, does not count.
            means = {TRAIN_LOSS_BUCKET.at(name): torch.stack(each).nanmean() for name, each in self._losses.items()}
            self._losses = {}
            self.module.log_dict(means, batch_size=1, sync_dist=trainer.world_size > 1)
