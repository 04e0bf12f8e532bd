"""Paired validation as a callback: scores validation clips and a training subset from step 0 on, judges divergence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from vidlit.diffusion.batch import LatentBatch
from vidlit.errors import UserError
from vidlit.metrics.paired_loss import PairedSummary
from vidlit.runs.logged_name import of_part
from vidlit.runs.logged_names import GAP, STATISTIC, THRESHOLD, TRAIN_EVAL_LOG_RATIO, VAL_LOG_RATIO, VAL_SCORE
from vidlit.signals.paired_curves import SETS, PairedCurves
from vidlit.signals.signal import Signal
from vidlit.stopping.divergence import DivergenceHistory, DivergenceSettings, check_scores, judge_divergence
from vidlit.stopping.verdict import StopAt, Verdict, join_parts
from vidlit.training.step.objective import scored_sigmas


class DivergenceMonitor(Signal):
    """Scores validation clips and a training subset at fixed noise, as log-ratios to the base model.

    Step 0 is measured by Lightning's sanity check, which this callback makes run over all validation batches. Logs
    ``val/loss``, ``val/log_ratio``, ``val/log_ratio_bin_<k>`` (lowest noise first), the same for ``train_eval``,
    ``val/log_ratio_bucket_<bucket>`` where validation clips are of several buckets, ``val/score`` (the log-ratio
    without the jumps of single recordings: the lowest is the best check), and ``divergence/gap``,
    ``divergence/statistic``, ``divergence/threshold``.

    A model of several parts (two experts, video and sound) has curves and a verdict for each: its names end in the
    part's (``val/log_ratio/high``), and the bare log-ratios are means over the parts, of those that are done the last.

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
        self.stop_at: StopAt = "last"
        """Of several parts, the one whose verdict stops the run."""
        self.sets: tuple[str, ...] = SETS
        """Those that have clips: ``val`` is missing where there are no validation clips."""
        self.parts: dict[str, PairedCurves] = {}
        """By the name of the part."""
        self.done: dict[str, Verdict] = {}
        """Verdicts of parts that are trained no more, as they were then."""
        self.judged: dict[str, Verdict] = {}
        """Verdicts of all parts at the latest check."""

    # -- measuring

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare one table a part and set, and make sure that step 0 is measured whole."""
        super().setup(trainer, pl_module, stage)
        if stage not in ("fit", "validate"):
            return
        clips = {"val": self.data.scored_clips, "train_eval": self.data.train_eval_clips}
        self.sets = tuple(name for name in SETS if clips[name])
        self.parts = {
            part.name: PairedCurves(
                clips,
                {name: scored_sigmas(self.module, clips[name], part) for name in self.sets},
                partial=bool(part.marker),
            )
            for part in self.module.parts.parts
        }
        if stage == "fit":
            trainer.num_sanity_val_steps = float("inf")

    def on_validation_start(self, *_: Any) -> None:
        """Start each table empty, where the model is."""
        for curves in self.parts.values():
            curves.begin(self.module.device)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, _: int, dataloader_idx: int = 0
    ) -> None:
        """Feed the losses of one batch."""
        losses: Mapping[str, Tensor] = outputs
        for part in self.module.parts.scored:
            examples = batch.has(part.marker).cpu()
            rows, of_part = batch.indices[examples], losses[part.name][examples]
            self.parts[part.name].add(self.sets[dataloader_idx], rows, of_part)

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Turn the tables into log-ratios, remember and log them."""
        if self.trainer.sanity_checking:
            self._log_start()
            return
        checked = self.trainer.state.fn == "fit"
        step = self.trainer.global_step
        logged: dict[str, dict[str, float]] = {}
        for name in self._scored:
            curves = self.parts[name]
            values = logged[name] = curves.finish(step if checked else None)
            if curves.has_validation and TRAIN_EVAL_LOG_RATIO.name in values:
                values[GAP.name] = values[VAL_LOG_RATIO.name] - values[TRAIN_EVAL_LOG_RATIO.name]
            if curves.has_validation and checked:
                values[VAL_SCORE.name] = float(check_scores(curves.history())[-1])
        numbers = self._with_means(logged)
        numbers["step"] = float(step)
        tensors = {name: torch.tensor(value) for name, value in numbers.items()}
        self.module.log_dict(tensors, batch_size=1, rank_zero_only=False)

    @property
    def _scored(self) -> list[str]:
        """Parts that a check scores: those that are trained, or all where none is."""
        return [part.name for part in self.module.parts.scored]

    def _log_start(self) -> None:
        """Take the base model's losses for step 0's."""
        step = self.trainer.global_step
        logged = {
            name: {row.name: value for row, value in self.parts[name].begin_at(step).items()} for name in self._scored
        }
        for logger in self.trainer.loggers:  # self.log is off during the sanity check
            logger.log_metrics(self._with_means(logged), step=0)

    def _with_means(self, logged: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
        """What parts log, each under names of its own, and their means; a part that is done counts as it was then."""
        if len(self.parts) == 1:
            return dict(logged[next(iter(self.parts))])
        numbers = {of_part(name, part): value for part, each in logged.items() for name, value in each.items()}
        before = {part: curves.latest() for part, curves in self.parts.items() if part not in logged}
        means: dict[str, list[float]] = {}
        for each in (*logged.values(), *before.values()):
            for name, value in each.items():
                means.setdefault(name, []).append(value)
        known = {name: values for name, values in means.items() if len(values) == len(self.parts)}
        return {name: math.fsum(values) / len(values) for name, values in known.items()} | numbers

    def summaries(self) -> dict[tuple[str, str], PairedSummary]:
        """The latest check of each part and set against step 0; empty where no step 0 is known."""
        return {
            (part, name): summary for part, curves in self.parts.items() for name, summary in curves.summaries().items()
        }

    # -- judging

    def histories(self) -> dict[str, DivergenceHistory]:
        """All checks of each part so far, step 0 included; none without validation clips, or before step 0's."""
        return {name: curves.history() for name, curves in self.parts.items() if curves.has_validation}

    def verdict(self) -> Verdict:
        """Has validation turned, stalled or never gained?"""
        self.judged = self.verdicts()
        if not self.judged:
            return self._nothing_held_out()
        verdict = join_parts(self.judged, self.stop_at)
        tested = {"statistic": STATISTIC, "threshold": THRESHOLD}
        numbers = {
            of_part(row.name, part, of=len(self.parts)): float(each.evidence[key])
            for part, each in self.judged.items()
            for key, row in tested.items()
            if key in each.evidence
        }
        for logger in self.trainer.loggers:
            logger.log_metrics(numbers, step=self.trainer.global_step)
        return verdict

    def verdicts(self) -> dict[str, Verdict]:
        """The verdict on each part, by name: its last one where it is done."""
        options: dict[str, Any] = {"settings": self.settings, "warmup_steps": self.module.warmup_steps}
        histories = self.histories()
        return {name: self.done.get(name) or judge_divergence(each, **options) for name, each in histories.items()}

    def _nothing_held_out(self) -> Verdict:
        curves = self.parts[self._scored[0]]
        step = self.trainer.global_step
        evidence: dict[str, float | int | str] = {"step": step, "held_out_videos": 0}
        train_eval = float(curves.curves["train_eval"][-1].mean()) if "train_eval" in curves.references else 0.0
        if not math.isfinite(train_eval):
            reason = (
                f"At step {step} the loss of a training clip is no longer a finite number: training has "
                "broken down; lower the learning rate."
            )
            return Verdict("divergence", "stop", reason, {"case": "not finite", **evidence}, fatal=True)
        none = "no validation clip has any sound" if "val" in self.sets else "There are no validation clips"
        reason = f"{none[0].upper()}{none[1:]}: overfitting cannot be detected from losses."
        evidence |= {"case": "nothing held out", "train_eval_log_ratio": train_eval}
        return Verdict("divergence", "continue", reason, evidence)

    # -- state: tensors and numbers only, so that checkpoints load with weights_only

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to decide as the uninterrupted one."""
        states = {name: curves.state_dict() for name, curves in self.parts.items()}
        if not any(states.values()):
            return {}
        if len(states) == 1:
            return next(iter(states.values()))
        return {"parts": states, "done": {name: vars(verdict) for name, verdict in self.done.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the history of a checkpoint; a test, which scores other clips, has no use for it."""
        if not state_dict or not self.parts:
            return
        states = state_dict.get("parts") or {next(iter(self.parts)): state_dict}
        if states.keys() != self.parts.keys():
            raise UserError(
                f"The checkpoint trained {' and '.join(states)}, here it is {' and '.join(self.parts)}: its curves "
                "cannot be continued. Set model.expert and model.audio as they were, or start a new run."
            )
        for name, state in states.items():
            if state:
                self.parts[name].load_state_dict(state)
        self.done = {name: Verdict(**words) for name, words in state_dict.get("done", {}).items()}
        if self.trainer.state.fn == "fit":  # a look at a checkpoint scores all parts
            self.module.parts.done |= self.done.keys()
