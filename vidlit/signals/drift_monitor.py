"""Drift: how far a model has moved from its base at captions that nobody trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidlit.diffusion.batch import collate
from vidlit.diffusion.loss import noisy_inputs
from vidlit.diffusion.noising import stream_generator
from vidlit.diffusion.preservation import read_captions
from vidlit.diffusion.streams import LATENTS, by_stream
from vidlit.errors import UserError
from vidlit.runs.logged_names import DRIFT
from vidlit.signals.signal import Signal
from vidlit.stopping.drift import LIMIT, judge_drift, relative_drift
from vidlit.stopping.verdict import Verdict

NUM_EVALUATIONS = 4
"""Of the model at a check: noise levels, each with a caption and a clip. A check scores some dozens of clips beside."""
_NUM_CLIPS = 2


class DriftMonitor(Signal):
    """Compares predictions at captions that are not trained on with the base's, at fixed noise, clips and levels.

    The base is the model with its LoRA switched off; where weights themselves are trained, the model of step 0, whose
    predictions are kept. Logs ``drift/velocity``: the squared distance of velocities as a share of the base's square.

    Args:
        captions: captions that no clip has, such as of other subjects, of which four are watched; or a text file with
            one a line. ``None`` for those of ``model.preservation``, or else the empty caption.
        limit: drift at which to warn, or to stop where the policy says so.

    Raises:
        UserError: the limit is not positive.
    """

    name = "drift"
    title = "forgetting"
    judges = "how far predictions at captions that are not trained on have moved from the base's"
    because = "predictions at captions that were not trained on had moved far from the base's"
    default_mode = "warn"

    def __init__(self, captions: list[str] | Path | None = None, limit: float = LIMIT) -> None:
        if not limit > 0:
            raise UserError(f"drift.limit is {limit:g}: it must be above 0.")
        self.captions, self.limit = captions, limit
        self.drifts: list[float] = []
        self._base: list[Tensor] = []

    @torch.no_grad()
    def on_validation_epoch_end(self, *_: Any) -> None:
        """Measure, remember and log; at step 0 keep what the base predicts, if it cannot be asked later."""
        if self.trainer.state.fn != "fit":
            return
        if self.trainer.sanity_checking:
            self._base, self.drifts = [] if self._has_base else self._velocities(), []
            for logger in self.trainer.loggers:  # self.log is off during the sanity check
                logger.log_metrics({DRIFT.name: 0.0}, step=0)
            return
        if not self._base and not self._has_base:  # begun by a version without drift
            return
        if not self._base:
            with self.module.base_only():
                self._base = self._velocities()
        pairs = zip(self._velocities(), self._base, strict=True)
        made, base = (torch.cat([each.flatten() for each in side]) for side in zip(*pairs, strict=True))
        drift = torch.tensor(relative_drift(made.numpy(), base.numpy()), device=self.module.device)
        self.drifts.append(float(self.trainer.strategy.reduce(drift, reduce_op="mean")))  # a say of one voice
        self.module.log_dict({DRIFT.name: self.drifts[-1], "step": float(self.trainer.global_step)}, batch_size=1)

    @property
    def _has_base(self) -> bool:
        return self.module.adapter is not None

    def _velocities(self) -> list[Tensor]:
        """What the model predicts of the picture, (1, C, F, H, W) float32 on the CPU, at each evaluation."""
        preservation = self.module.preservation
        captions = watched_captions(self.captions, read_captions(preservation.captions) if preservation else [])
        clips = self.data.spread(self.data.scored_clips or self.data.train_eval_clips, _NUM_CLIPS)
        dataset = self.data.dataset(clips)
        device, streams = self.module.device, [stream.name for stream in self.module.family.streams]
        found = []
        for number in range(NUM_EVALUATIONS):
            batch = collate([dataset[number % len(clips)]], self.module.family.prompt_length).to(device)
            prompt = self.module.prompt(captions[number % len(captions)])
            batch = batch._replace(conditioning=prompt.instead_of(batch.conditioning))
            noising = self.module.noising.at(batch.latents[0, 0].numel())
            sigmas = noising.quantile(torch.tensor([(number + 0.5) / NUM_EVALUATIONS])).to(device)
            noise = {
                name: torch.randn(
                    batch.stream(name).shape, generator=stream_generator("drift", name, self.module.seed, number)
                ).to(device)
                for name in streams
            }
            with self.trainer.precision_plugin.forward_context():
                velocities = by_stream(
                    self.module(*noisy_inputs(noising, batch, noise, dict.fromkeys(streams, sigmas)))
                )
            found.append(velocities[LATENTS].float().cpu())
        return found

    def verdict(self) -> Verdict:
        """Has it forgotten?"""
        if not self.drifts:
            return Verdict(self.name, "continue", "Drift is not measured: what the base predicts is not known.")
        return judge_drift(self.drifts, self.limit)

    # -- state: tensors and numbers only

    def state_dict(self) -> dict[str, Any]:
        """The curve; and of a model that is trained whole, what it predicted at step 0."""
        return {"drifts": self.drifts, "base": [] if self._has_base else self._base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the curve of a checkpoint."""
        self.drifts, self._base = list(state_dict["drifts"]), list(state_dict["base"])


def watched_captions(captions: Sequence[str] | Path | None, preserved: Sequence[str]) -> list[str]:
    """Captions at which drift is measured: four at most, spread over those that are given.

    Args:
        captions: of the option; ``None`` for the next.
        preserved: those of ``model.preservation``; the empty caption where there are none.
    """
    every = (read_captions(captions) if captions is not None else list(preserved)) or [""]
    return every[:: math.ceil(len(every) / NUM_EVALUATIONS)]
