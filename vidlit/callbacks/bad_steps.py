"""Steps whose loss or gradient is NaN or infinite: named, counted, and ended when there are too many."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.batch import LatentBatch
from vidlit.errors import UserError
from vidlit.lightning_internals import is_mid_step
from vidlit.training.run_callback import RunCallback
from vidlit.training.step.numbers import StepReading


class _Step(NamedTuple):
    """An optimizer step that may have been left out.

    Args:
        number: of the step.
        reading: what will be known of it.
        micro_batches: loss () and indices of the clips (B,) of each.
    """

    number: int
    reading: StepReading
    micro_batches: list[tuple[Tensor, Tensor]]


class BadSteps(RunCallback):
    """Says which clips were in a step that the module left out because its loss or gradient was NaN or infinite.

    Each such step is a line of ``skipped.jsonl`` in the run directory. With ``model.bad_steps.action: stop`` the first
    ends the run, else the one after ``model.bad_steps.max_skipped``. A step is looked at when the next one has been
    given to the device, which so never runs out of work; at once where the first bad one ends the run.
    """

    def __init__(self) -> None:
        self.num_bad = 0
        self._micro_batches: list[tuple[Tensor, Tensor]] = []
        self._waiting: _Step | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Remember the micro-batches of a step until it is known whether it was good.

        Raises:
            UserError: it was bad, and one too many.
        """
        self._micro_batches.append((outputs["loss"].detach(), batch.indices))
        if is_mid_step(trainer):
            return
        step = _Step(trainer.global_step, self.module.numbers.last, self._micro_batches)
        self._micro_batches = []
        self._look()
        self._waiting = step
        if self.module.bad_steps.action == "stop":
            self._look()

    def on_validation_start(self, *_: Any) -> None:
        """Look at the last step before it is judged or saved."""
        self._look()

    def on_train_end(self, *_: Any) -> None:
        """Look at the last step."""
        self._look()

    def _look(self) -> None:
        """Was the step that waits a bad one? The gradient is the same on every rank, so all are here."""
        step, self._waiting = self._waiting, None
        if step is None or not step.reading.was_bad:
            return
        self.num_bad += 1
        losses = _gather(torch.stack([loss for loss, _ in step.micro_batches]).float(), self.trainer)
        rows = [_gather(indices.to(self.module.device), self.trainer) for _, indices in step.micro_batches]
        clips = self.data.train_clips
        bad = [k for k in range(len(rows)) if not losses[:, k].isfinite().all()]
        named = sorted({clips[row].clip_id for k in bad or range(len(rows)) for row in rows[k].flatten().tolist()})
        record = {
            "step": step.number,
            "losses": [loss if math.isfinite(loss) else str(loss) for loss in losses.flatten().tolist()],
            "grad_norm": str(step.reading.grad_norm),
            "clips": named,
        }
        if self.trainer.is_global_zero:
            with self.run.skipped.open("a") as file:
                file.write(json.dumps(record) + "\n")
        what = (
            f"step {step.number}: the {'loss' if bad else 'gradient'} was NaN or infinite, on clips "
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
        """How many there were, the last step among them."""
        self._look()
        return {"num_bad": self.num_bad}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.num_bad = state_dict["num_bad"]


def _gather(tensor: Tensor, trainer: Trainer) -> Tensor:
    """Of all ranks that hold different samples: (their number, ...)."""
    gathered: Tensor = trainer.strategy.all_gather(tensor)
    return gathered.reshape(trainer.world_size, *tensor.shape)[:: DataRanks.of(trainer).peers]
