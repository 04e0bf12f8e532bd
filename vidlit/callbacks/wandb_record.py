"""What Weights & Biases gets beside the numbers: config, dataset, videos, exposures, decisions."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from vidlit import __version__
from vidlit.bounded_yaml import read_yaml
from vidlit.runs.logged_names import (
    AUDIT_VIDEO,
    EXPOSURE_HISTOGRAM,
    NEAREST_VIDEO,
    PROMPT_VIDEO,
    SAMPLE_VIDEO,
    STEP,
    VAL_LOG_RATIO,
    all_rows,
)
from vidlit.runs.loggers.background_logger import BackgroundLogger
from vidlit.runs.redaction import redact, redact_text
from vidlit.runs.signal_words import titles
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.signal import Signal
from vidlit.stopping.verdict import Decision
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule


class WandbRecord(RunCallback):
    """Fills a W&B run where one of the loggers is lightning's ``WandbLogger``; does nothing otherwise.

    Logs once the config (without keys), the version of the code and a summary of the dataset; at each check the
    exposures as a histogram and new sample videos under the same names, so that W&B shows them side by side over time;
    a decision that warns or stops as an alert; at the end the decision in the run's summary.

    Args:
        file_names: whether to log the names of video files, which may tell more than you want to share.
        max_videos: largest number of videos of each kind and step.
    """

    section = "wandb"

    def __init__(self, file_names: bool = False, max_videos: int = 8) -> None:
        self.file_names = file_names
        self.max_videos = max_videos
        self._shown: set[Path] = set()
        self._alerted: set[str] = set()

    def on_fit_start(self, *_: Any) -> None:
        """What is logged, before anything is."""
        if not _loggers(self.trainer):
            return

        def start(run: Any) -> None:
            for row in all_rows():
                if row.summary is not None:
                    run.define_metric(row.glob, step_metric=STEP, summary=row.summary)
            if run.url:
                print(f"W&B: {run.url}")

        _submit(self.trainer, start)

    def on_train_epoch_start(self, *_: Any) -> None:
        """Config, dataset and code, as saved when a checkpoint was taken up: the epoch begins once, without end."""
        if not _loggers(self.trainer):
            return
        saved = read_yaml(self.run.config) if self.run.config.is_file() else {}
        record = {**redact(saved), "dataset": self._dataset(self.data), "code": _code()}
        _submit(self.trainer, lambda run: run.config.update(record, allow_val_change=True))

    def _dataset(self, data: LatentDataModule) -> dict[str, Any]:
        sides = {"train": data.train_clips, "val": data.val_clips, "test": data.test_clips}
        summary: dict[str, Any] = {
            "clips": {side: len(clips) for side, clips in sides.items()},
            "source_videos": {side: len({clip.source.group for clip in clips}) for side, clips in sides.items()},
            "captions": len({clip.source.caption for clips in sides.values() for clip in clips}),
            "buckets": dict(Counter(str(clip.bucket) for clips in sides.values() for clip in clips)),
            "dropped": len(data.usage.dropped),
            "quarantined": len(data.usage.quarantined),
        }
        if self.file_names:
            summary["files"] = {side: sorted({clip.source.video for clip in clips}) for side, clips in sides.items()}
        return summary

    def on_validation_end(self, *_: Any) -> None:
        """Exposures, audited videos and the decision; after ``OverfitStopping`` wrote it."""
        if self.trainer.state.fn != "fit" or not self.trainer.is_global_zero or not _loggers(self.trainer):
            return
        self._log_videos(self.trainer.global_step)
        if self.trainer.sanity_checking:
            return
        self._log_exposures()
        for stopping in self.others(OverfitStopping):
            if stopping.decision is not None:
                self._alert(stopping.decision)

    def show_samples(self, step: int) -> None:
        """Log what was sampled at a step outside of a check."""
        if self.trainer.is_global_zero and _loggers(self.trainer):
            self._log_videos(step)

    def _log_exposures(self) -> None:
        counts = [count for ledger in self.others(ExposureLedger) for count in ledger.per_video().values()]
        step = self.trainer.global_step

        def log(run: Any) -> None:
            import wandb

            run.log({EXPOSURE_HISTOGRAM.name: wandb.Histogram(counts), STEP: step})

        if counts:
            _submit(self.trainer, log)

    def _alert(self, decision: Decision) -> None:
        """Once for each action and set of signals: a warning that stays is not repeated at every check."""
        kind = f"{decision.action} {'+'.join(decision.signals)}"
        if decision.action == "continue" or kind in self._alerted:
            return
        self._alerted.add(kind)
        stop = decision.action == "stop"
        signals = titles(decision.signals, {each.name: each.words() for each in self.others(Signal)})
        title = f"{'Stopped by' if stop else 'Warning of'} {signals} at step {self.trainer.global_step}"[:64]
        text = self._without_names(decision.reason, decision)

        _submit(self.trainer, lambda run: run.alert(title=title, text=text, level="WARN"))

    def _log_videos(self, step: int) -> None:
        folder = self.run.samples(step)
        found: dict[str, Path] = {}
        kinds = {"audit_": AUDIT_VIDEO, "": SAMPLE_VIDEO, "audit_pair_": NEAREST_VIDEO, "prompt_": PROMPT_VIDEO}
        for prefix, row in kinds.items():
            paths = [path for path in sorted(folder.glob(f"{prefix}[0-9]*.mp4")) if path not in self._shown]
            found |= {row.at(number): path for number, path in enumerate(paths[: self.max_videos])}
        captions = {path: _prompt(path) for path in found.values()}
        self._shown |= set(found.values())

        def log(run: Any) -> None:
            import wandb

            videos = {
                name: wandb.Video(str(path), caption=captions[path], format="mp4") for name, path in found.items()
            }
            run.log({**videos, STEP: step})

        if found:
            _submit(self.trainer, log)

    def on_fit_end(self, *_: Any) -> None:
        """The videos of the kept weights, and the decision in the summary."""
        if not self.trainer.is_global_zero or not _loggers(self.trainer):
            return
        for stopping in self.others(OverfitStopping):
            self._log_videos(stopping.kept_step)
            self._summarise(stopping)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """How far an interrupted or crashed run came."""
        self.attach(trainer, pl_module)
        if trainer.state.fn == "fit" and trainer.is_global_zero and _loggers(trainer):
            for stopping in self.others(OverfitStopping):
                self._summarise(stopping)

    def _summarise(self, stopping: OverfitStopping) -> None:
        summary = stopping.summary
        reason = self._without_names(str(summary.get("reason", "")), stopping.decision)
        decision = {f"decision/{name}": value for name, value in summary.items() if name != "reason"}
        decision["decision/reason"] = reason
        if summary.get("kept_gain") is not None:
            decision[VAL_LOG_RATIO.name] = -summary["kept_gain"]
        _submit(self.trainer, lambda run: run.summary.update(decision))

    def _without_names(self, text: str, decision: Decision | None) -> str:
        """A reason as it may leave this machine."""
        for verdict in decision.verdicts if decision is not None and not self.file_names else ():
            for name, words in (("sample", "a sample"), ("nearest_clip", "a training clip")):
                if verdict.evidence.get(name):
                    text = text.replace(str(verdict.evidence[name]), words)
        return redact_text(text)

    def state_dict(self) -> dict[str, Any]:
        """Alerts that were sent: a resumed run does not send them again."""
        return {"alerted": sorted(self._alerted)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember them."""
        self._alerted = set(state_dict["alerted"])


def _loggers(trainer: Trainer) -> list[BackgroundLogger]:
    background = [each for each in trainer.loggers if isinstance(each, BackgroundLogger)]
    return [each for each in background if isinstance(each.logger, WandbLogger)]


def _submit(trainer: Trainer, task: Callable[[Any], object]) -> None:
    for logger in _loggers(trainer):
        logger.submit(lambda wandb_logger: task(wandb_logger.experiment))


def _prompt(sample: Path) -> str | None:
    """What a sample was made from, as was written beside it."""
    note = sample.with_suffix(".json")
    return json.loads(note.read_text()).get("prompt") if note.is_file() else None


def _code() -> dict[str, str]:
    """The version that is installed and, in a clone, its commit."""
    try:
        asked = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
        commit = asked.stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    return {"version": __version__, **({"commit": commit} if commit else {})}
