"""Drift: how far a model has moved from its base at captions that are not the clips'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vidlit.diffusion.batch import collate
from vidlit.diffusion.loss import noisy_inputs
from vidlit.diffusion.noising import stream_generator
from vidlit.diffusion.streams import by_stream
from vidlit.errors import UserError
from vidlit.runs.logged_names import DRIFT
from vidlit.runs.wording import say
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.signal import Signal
from vidlit.stopping.drift import LIMIT, judge_drift, relative_drift
from vidlit.stopping.verdict import Verdict
from vidlit.training.step.open_parts import as_expert
from vidlit.training.step.preservation import read_captions

NUM_EVALUATIONS = 4
"""Of each transformer at a check: noise levels, each with a caption and a clip. A check scores some dozens of clips."""
_NUM_CLIPS = 2


class DriftMonitor(Signal):
    """Compares predictions at captions that are not the clips' with the base's, at fixed noise, clips and levels.

    The base is the model with its LoRA switched off; where weights themselves are trained, the model of step 0, whose
    predictions are kept. Logs ``drift/velocity``: the squared distance of velocities as a share of the base's square,
    the mean over the parts that are trained. With ``overfit_stopping.policy.drift: "off"`` nothing is measured.

    Args:
        captions: captions that no clip has, such as of other subjects, of which four are watched; or a text file with
            one a line. ``None`` for those of ``model.preservation``, which then holds them out where it has others, or
            else the empty caption.
        limit: drift at which to warn, or to stop where the policy says so.

    Raises:
        UserError: the limit is not positive, or the file cannot be read.
    """

    name = "drift"
    title = "forgetting"
    judges = "how far predictions at captions that are not the clips' have moved from the base's"
    because = "predictions at captions that are not the clips' had moved far from the base's"
    default_mode = "warn"

    def __init__(self, captions: list[str] | Path | None = None, limit: float = LIMIT) -> None:
        if not limit > 0:
            raise UserError(f"drift.limit is {limit:g}: it must be above 0.")
        self.captions = read_captions(captions or [])
        self.limit = limit
        self.watched: list[str] = []
        """The captions at which it is measured, for all of the run's life."""
        self.drifts: list[float] = []
        self._base: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Choose the captions."""
        super().setup(trainer, pl_module, stage)
        preservation = self.module.preservation
        texts = preservation.texts if preservation is not None else []
        self.watched = watched_captions(self.captions, texts, drops_captions=self.module.caption_dropout > 0)

    def on_train_start(self, *_: Any) -> None:
        """Have the captions held out, and say which are not."""
        if self.module.preservation is not None:
            self.module.preservation.held_out = () if self._is_off else self.watched
        if not self._is_off and self._trained_on and self.trainer.is_global_zero:
            say(f"drift: {self._trained_on}")

    @torch.no_grad()
    def on_validation_epoch_end(self, *_: Any) -> None:
        """Measure, remember and log; at step 0 keep what the base predicts, if it cannot be asked later."""
        if self.trainer.state.fn != "fit" or self._is_off:
            return
        if self.trainer.sanity_checking:
            self._base, self.drifts = {} if self._has_base else self._velocities(), []
            for logger in self.trainer.loggers:  # self.log is off during the sanity check
                logger.log_metrics({DRIFT.name: 0.0}, step=0)
            return
        if not self._base and not self._has_base:  # begun by a version without drift, or with drift off
            return
        if not self._base:
            with self.module.base_only():
                self._base = self._velocities()
        made = self._velocities()
        shares = [relative_drift(made[name].numpy(), base.numpy()) for name, base in self._base.items()]
        drift = torch.tensor(sum(shares) / len(shares), device=self.module.device)
        self.drifts.append(float(self.trainer.strategy.reduce(drift, reduce_op="mean")))  # a say of one voice
        self.module.log_dict({DRIFT.name: self.drifts[-1], "step": float(self.trainer.global_step)}, batch_size=1)

    @property
    def _has_base(self) -> bool:
        return self.module.adapter is not None

    @property
    def _is_off(self) -> bool:
        return any(each.policy.get(self.name) == "off" for each in self.others(OverfitStopping))

    @property
    def _trained_on(self) -> str:
        """What of the captions is trained on, in words; empty where nothing is."""
        preservation = self.module.preservation
        if preservation is not None and set(self.watched) & set(preservation.trained):
            return (
                "the captions watched are among those that model.preservation trains on, which has too few to hold "
                "some out: name others in drift.captions."
            )
        if "" in self.watched and self.module.caption_dropout > 0:
            return "the empty caption is watched, which model.caption_dropout trains on: name others in drift.captions."
        return ""

    def _velocities(self) -> dict[str, Tensor]:
        """What the model predicts of each part that is trained, flat, float32 on the CPU, over the evaluations."""
        parts = self.module.parts.parts
        found: dict[str, list[Tensor]] = {part.name: [] for part in parts}
        for expert in self.module.expert_names:
            asked = [part for part in parts if part.expert == expert]  # the streams of a transformer are asked together
            for number in range(NUM_EVALUATIONS):
                velocities = self._predict(number, expert, asked[0].sigmas)
                for part in asked:
                    found[part.name].append(velocities[part.stream].float().cpu().flatten())
        return {name: torch.cat(each) for name, each in found.items()}

    def _predict(self, number: int, expert: str, sigmas: tuple[float, float]) -> dict[str, Tensor]:
        """Velocities (1, ...) by stream at one evaluation, of a transformer between its noise levels."""
        clips = self.data.spread(self.data.scored_clips or self.data.train_eval_clips, _NUM_CLIPS)
        device, streams = self.module.device, [stream.name for stream in self.module.family.streams]
        sample = self.data.dataset(clips)[number % len(clips)]
        batch = collate([sample], self.module.family.prompt_length).to(device)
        prompt = self.module.prompt(self.watched[number % len(self.watched)])
        batch = batch._replace(conditioning=prompt.instead_of(batch.conditioning))
        noising = self.module.noising.at(batch.latents[0, 0].numel()).between(*sigmas)
        level = noising.quantile(torch.tensor([(number + 0.5) / NUM_EVALUATIONS])).to(device)
        noise = {
            name: torch.randn(
                batch.stream(name).shape, generator=stream_generator("drift", name, self.module.seed, number)
            ).to(device)
            for name in streams
        }
        with self.trainer.precision_plugin.forward_context():
            given = noisy_inputs(noising, batch, noise, dict.fromkeys(streams, level))
            return by_stream(as_expert(self.module, expert)(*given))

    def verdict(self) -> Verdict:
        """Has it forgotten?"""
        if not self.drifts:
            return Verdict(self.name, "continue", "Drift is not measured: what the base predicts is not known.")
        judged = judge_drift(self.drifts, self.limit)
        told = self._trained_on
        return replace(judged, reason=f"{judged.reason} But {told}") if told else judged

    # -- state: words, tensors and numbers only

    def state_dict(self) -> dict[str, Any]:
        """The captions, the curve; and of a model that is trained whole, what it predicted at step 0."""
        watched = [] if self._is_off else self.watched
        return {"watched": watched, "drifts": self.drifts, "base": {} if self._has_base else self._base}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the captions and the curve of a checkpoint."""
        self.watched, self.drifts = list(state_dict["watched"]) or self.watched, list(state_dict["drifts"])
        self._base = dict(state_dict["base"])


def watched_captions(captions: Sequence[str], preserved: Sequence[str], *, drops_captions: bool = False) -> list[str]:
    """Captions at which drift is measured: four at most, spread over those that are given.

    Args:
        captions: of the option; where there are none, the next.
        preserved: those of ``model.preservation``; the empty caption where there are none.
        drops_captions: whether training replaces captions by the empty one, which is then watched if there is no other.
    """
    given = [caption for caption in (captions or preserved) if caption or not drops_captions] or [""]
    return given[:: math.ceil(len(given) / NUM_EVALUATIONS)]
