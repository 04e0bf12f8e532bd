"""Steps whose loss or gradient is NaN or infinite: named, counted, and ended when there are too many."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.batch import LatentBatch
from vidlit.errors import UserError
from vidlit.lightning_internals import is_mid_step
from vidlit.training.run_callback import RunCallback


class BadSteps(RunCallback):
    """Says which clips were in a step that the module left out because its loss or gradient was NaN or infinite.

    Each such step is a line of ``skipped.jsonl`` in the run directory. With ``model.bad_steps.action: stop`` the first
    ends the run, else the one after ``model.bad_steps.max_skipped``.
    """

    def __init__(self) -> None:
        self.num_bad = 0
        self._micro_batches: list[tuple[Tensor, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Remember the micro-batches of a step until it is known whether it was good.

        Raises:
            UserError: it was bad, and one too many.
        """
        self._micro_batches.append((outputs["loss"].detach(), batch.indices))
        if is_mid_step(trainer):
            return
        micro_batches, self._micro_batches = self._micro_batches, []
        if not self.module.step_was_bad:
            return
        # The gradient is the same on every rank, so all are here.
        self.num_bad += 1
        losses = _gather(torch.stack([loss for loss, _ in micro_batches]).float(), trainer)
        rows = [_gather(indices.to(self.module.device), self.trainer) for _, indices in micro_batches]
        clips = self.data.train_clips
        bad = [k for k in range(len(micro_batches)) if not losses[:, k].isfinite().all()]
        named = sorted(
            {clips[row].clip_id for k in bad or range(len(micro_batches)) for row in rows[k].flatten().tolist()}
        )
        record = {
            "step": trainer.global_step,
            "losses": [loss if math.isfinite(loss) else str(loss) for loss in losses.flatten().tolist()],
            "grad_norm": str(self.module.grad_norm),
            "clips": named,
        }
        if trainer.is_global_zero:
            with self.run.skipped.open("a") as file:
                file.write(json.dumps(record) + "\n")
        what = (
            f"step {trainer.global_step}: the {'loss' if bad else 'gradient'} was NaN or infinite, on clips "
            f"{', '.join(named[:8])}{' ...' if len(named) > 8 else ''}"
        )
        if self.module.bad_steps.action == "stop":
            raise UserError(
                f"{what}. The weights are as they were before it. Check these clips, lower the learning rate, or set "
                "--model.bad_steps.action skip."
            )
        if self.num_bad > self.module.bad_steps.max_skipped:
            raise UserError(
                f"{what}; steps of this kind in this run: {self.num_bad}, more than "
                f"--model.bad_steps.max_skipped {self.module.bad_steps.max_skipped} allows. All are listed in "
                f"{self.run.skipped}. Lower the learning rate, or use bf16-mixed instead of 16-mixed."
            )
        rank_zero_warn(f"{what}; the step was skipped, the weights are as they were before it")

    def state_dict(self) -> dict[str, Any]:
        """How many there were."""
        return {"num_bad": self.num_bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.num_bad = state_dict["num_bad"]


def _gather(tensor: Tensor, trainer: Trainer) -> Tensor:
    """Of all ranks that hold different samples: (their number, ...)."""
    gathered: Tensor = trainer.strategy.all_gather(tensor)
    return gathered.reshape(trainer.world_size, *tensor.shape)[:: DataRanks.of(trainer).peers]
