"""Paired validation as a callback: scores validation clips and a training subset from step 0 on, judges divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vidlit.diffusion.batch import LatentBatch, clip_key
from vidlit.errors import UserError
from vidlit.metrics.paired_loss import PairedLoss, PairedSummary, log_ratio, summarise
from vidlit.runs.logged_names import (
    GAP,
    STATISTIC,
    THRESHOLD,
    TRAIN_EVAL_LOG_RATIO,
    TRAIN_EVAL_LOG_RATIO_BIN,
    TRAIN_EVAL_LOSS,
    VAL_LOG_RATIO,
    VAL_LOG_RATIO_BIN,
    VAL_LOSS,
    VAL_SCORE,
)
from vidlit.signals.signal import Signal
from vidlit.stopping.divergence import DivergenceHistory, DivergenceSettings, check_scores, judge_divergence
from vidlit.stopping.verdict import Verdict, join_parts

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

SETS = ("val", "train_eval")
"""Validation clips and training clips scored alike: the order of the validation dataloaders."""
LOSS = {"val": VAL_LOSS, "train_eval": TRAIN_EVAL_LOSS}
LOG_RATIO = {"val": VAL_LOG_RATIO, "train_eval": TRAIN_EVAL_LOG_RATIO}
LOG_RATIO_BIN = {"val": VAL_LOG_RATIO_BIN, "train_eval": TRAIN_EVAL_LOG_RATIO_BIN}
"""What is logged of each set."""


class DivergenceMonitor(Signal):
    """Scores validation clips and a training subset at fixed noise, as log-ratios to the base model.

    Step 0 is measured by Lightning's sanity check, which this callback makes run over all validation batches. Logs
    ``val/loss``, ``val/log_ratio``, ``val/log_ratio_bin_<k>`` (lowest noise first), the same for ``train_eval``,
    ``val/score`` (the log-ratio without the jumps of single recordings: the lowest is the best check), and
    ``divergence/gap``, ``divergence/statistic``, ``divergence/threshold``.

    Args:
        settings: numbers of the rule that detects overfitting.

    Raises:
        UserError: on resume, the validation clips are not those of the checkpoint.
    """

    name = "divergence"
    title = "overfitting"
    judges = "train/val divergence: whether validation loss turns, or stalls while the training subset's falls"
    because = "the validation loss had risen, or had stopped improving while the training loss was still falling"

    def __init__(self, settings: DivergenceSettings = DivergenceSettings()) -> None:  # noqa: B008 - frozen
        self.settings = settings
        self.sets: tuple[str, ...] = SETS
        """Those that have clips: ``val`` is missing where there are no validation clips."""
        self.steps: list[int] = []
        self.curves: dict[str, list[Tensor]] = {name: [] for name in SETS}
        self.references: dict[str, Tensor] = {}
        self._keys: dict[str, Tensor] = {}
        self._metrics: dict[str, PairedLoss] = {}
        self._clips: Callable[[], dict[str, Sequence[Clip]]] = dict
        self._num_strata = 1

    # -- measuring

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare one table a set, and make sure that step 0 is measured whole."""
        super().setup(trainer, pl_module, stage)
        if stage not in ("fit", "validate"):
            return
        self._clips = lambda: {"val": self.data.scored_clips, "train_eval": self.data.train_eval_clips}
        self._num_strata = self.module.num_strata
        self._lay_out()
        if stage == "fit":
            trainer.num_sanity_val_steps = float("inf")

    def _lay_out(self) -> None:
        """One empty table a set, and what names its rows."""
        clips = self._clips()
        self.sets = tuple(name for name in SETS if clips[name])
        for name in self.sets:
            self._keys[name] = torch.tensor([clip_key(clip.clip_id) for clip in clips[name]], dtype=torch.int64)
            self._metrics[name] = PairedLoss(len(clips[name]), self._num_strata)

    def on_validation_start(self, *_: Any) -> None:
        """Start each table empty, where the model is."""
        for metric in self._metrics.values():
            metric.to(self.module.device).reset()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, _: int, dataloader_idx: int = 0
    ) -> None:
        """Feed the losses of one batch."""
        self._metrics[self.sets[dataloader_idx]].update(batch.indices, outputs)

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Turn the tables into log-ratios, remember and log them."""
        losses = {name: self._metrics[name].compute().cpu() for name in self.sets}
        if self.trainer.sanity_checking:
            self.steps = [self.trainer.global_step]
            self.references = losses
            self.curves = {name: [torch.zeros(len(losses[name]), dtype=torch.float64)] for name in self.sets}
            for logger in self.trainer.loggers:  # self.log is off during the sanity check
                logger.log_metrics({LOSS[name].name: float(losses[name].mean()) for name in self.sets}, step=0)
                logger.log_metrics({LOG_RATIO[name].name: 0.0 for name in self.sets}, step=0)
            return
        logged = {LOSS[name].name: losses[name].mean() for name in self.sets}
        if self.references:
            for name in self.sets:
                ratio = log_ratio(losses[name], self.references[name], self.module.scored_sigmas(self._clips()[name]))
                bins = (losses[name] / self.references[name]).log().mean(0)
                logged[LOG_RATIO[name].name] = ratio.mean()
                logged |= {LOG_RATIO_BIN[name].at(k): value for k, value in enumerate(bins)}
                if self.trainer.state.fn == "fit":
                    self.curves[name].append(ratio)
            if "val" in self.sets:
                logged[GAP.name] = logged[VAL_LOG_RATIO.name] - logged[TRAIN_EVAL_LOG_RATIO.name]
        if self.trainer.state.fn == "fit":
            self.steps.append(self.trainer.global_step)
            if "val" in self.sets:
                logged[VAL_SCORE.name] = torch.tensor(check_scores(self.history())[-1])
        logged["step"] = torch.tensor(float(self.trainer.global_step))
        self.module.log_dict(logged, batch_size=1, rank_zero_only=False)

    def summaries(self) -> dict[str, PairedSummary]:
        """The latest check of each set against step 0; empty where no step 0 is known."""
        if not self.references:
            return {}
        clips, found = self._clips(), {}
        for name in self.sets:
            sigmas = self.module.scored_sigmas(clips[name])
            videos = [clip.source.group for clip in clips[name]]
            found[name] = summarise(self._metrics[name].compute().cpu(), self.references[name], sigmas, videos)
        return found

    # -- judging

    def history(self) -> DivergenceHistory:
        """All checks so far, step 0 included."""
        clips = self._clips()
        return DivergenceHistory(
            steps=torch.tensor(self.steps).numpy(),
            val=torch.stack(self.curves["val"]).numpy(),
            train_eval=torch.stack(self.curves["train_eval"]).numpy(),
            val_videos=tuple(clip.source.group for clip in clips["val"]),
            train_eval_videos=tuple(clip.source.group for clip in clips["train_eval"]),
        )

    def verdict(self) -> Verdict:
        """Has validation turned, stalled or never gained?"""
        if "val" not in self.sets:
            return self._nothing_held_out()
        judged = judge_divergence(self.history(), self.settings, warmup_steps=self.module.warmup_steps)
        verdict = join_parts({"all": judged})
        tested = {"statistic": STATISTIC, "threshold": THRESHOLD}
        numbers = {row.name: float(verdict.evidence[key]) for key, row in tested.items() if key in verdict.evidence}
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=self.trainer.global_step)
        return verdict

    def _nothing_held_out(self) -> Verdict:
        evidence: dict[str, float | int | str] = {"step": self.steps[-1], "held_out_videos": 0}
        train_eval = float(self.curves["train_eval"][-1].mean())
        if not math.isfinite(train_eval):
            reason = (
                f"At step {self.steps[-1]} the loss of a training clip is no longer a finite number: training has "
                "broken down; lower the learning rate."
            )
            return Verdict("divergence", "stop", reason, {"case": "not finite", **evidence}, fatal=True)
        reason = "There are no validation clips: overfitting cannot be detected from losses."
        evidence |= {"case": "nothing held out", "train_eval_log_ratio": train_eval}
        return Verdict("divergence", "continue", reason, evidence)

    # -- state: tensors and numbers only, so that checkpoints load with weights_only

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to decide as the uninterrupted one."""
        if not self.references:
            return {}
        return {
            "steps": self.steps,
            **{f"{name}_curves": torch.stack(self.curves[name]) for name in self.sets},
            **{f"{name}_reference": self.references[name] for name in self.sets},
            **{f"{name}_keys": self._keys[name] for name in self.sets},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of a checkpoint; a test, which scores other clips, has no use for it."""
        if not state_dict or not self._keys:
            return
        for name in SETS:
            there = state_dict.get(f"{name}_keys", torch.zeros(0, dtype=torch.int64))
            if not torch.equal(there, self._keys.get(name, torch.zeros(0, dtype=torch.int64))):
                raise UserError(
                    f"The checkpoint was made with other {name} clips ({len(there)} there, "
                    f"{len(self._keys.get(name, ()))} here, or others): its curve cannot be continued. Use the same "
                    "data and split options, or start a new run."
                )
            levels = state_dict[f"{name}_reference"].shape[1] if len(there) else self._num_strata
            if levels != self._num_strata:
                raise UserError(
                    f"The checkpoint scored its {name} clips at {levels} noise levels, here it is {self._num_strata}: "
                    f"its curve cannot be continued. Set --model.noise.num_strata={levels}, or start a new run."
                )
        self.steps = list(state_dict["steps"])
        self.curves = {name: list(state_dict[f"{name}_curves"]) for name in self.sets}
        self.references = {name: state_dict[f"{name}_reference"] for name in self.sets}
