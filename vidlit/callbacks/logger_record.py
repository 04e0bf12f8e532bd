"""What loggers get beside the numbers: config, dataset, videos, exposures, decisions."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger

from vidlit import __version__
from vidlit.bounded_yaml import read_yaml
from vidlit.models.adapters import LoRA
from vidlit.runs.logged_names import (
    AUDIT_VIDEO,
    EXPOSURE_HISTOGRAM,
    NEAREST_VIDEO,
    PROMPT_VIDEO,
    SAMPLE_VIDEO,
)
from vidlit.runs.loggers.background_logger import BackgroundLogger
from vidlit.runs.loggers.continued_loggers import group_of
from vidlit.runs.loggers.run_writer import LoggedVideo, RunWriter, writer_for
from vidlit.runs.redaction import redact, redact_text
from vidlit.runs.signal_words import titles
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.signal import Signal
from vidlit.stopping.verdict import Decision
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule


class LoggerRecord(RunCallback):
    """Fills the runs of W&B, TensorBoard and MLflow, whichever the Trainer has; does nothing without them.

    Logs once the config (without keys), the version of the code and a summary of the dataset; at each check the
    exposures as a histogram and new sample videos under the same names, so that they are seen side by side over time;
    a decision that warns or stops as an alert; at the end the decision.

    Args:
        file_names: whether to log the names of video files, which may tell more than you want to share.
        max_videos: largest number of videos of each kind and step.
    """

    section = "logging"

    def __init__(self, file_names: bool = False, max_videos: int = 8) -> None:
        self.file_names = file_names
        self.max_videos = max_videos
        self._shown: set[Path] = set()
        self._alerted: set[str] = set()

    def on_fit_start(self, *_: Any) -> None:
        """What the run is, before anything is logged."""
        tags, group = [redact_text(tag) for tag in self._tags()], group_of(self.run)
        self._submit(lambda writer: writer.begin(tags, group))

    def _tags(self) -> list[str]:
        adapter = self.module.adapter
        lora = f"{adapter.title} rank {adapter.rank}" if isinstance(adapter, LoRA) else "all weights"
        return [type(self.module.family).__name__, Path(self.module.base).name, lora]

    def on_train_epoch_start(self, *_: Any) -> None:
        """Config, dataset and code, as saved when a checkpoint was taken up: the epoch begins once, without end."""
        if not self._writes():
            return
        saved = read_yaml(self.run.config) if self.run.config.is_file() else {}
        record = {**redact(saved), "dataset": self._dataset(self.data), "code": _code()}
        self._submit(lambda writer: writer.config(record))

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
        if self.trainer.state.fn != "fit" or not self.trainer.is_global_zero or not self._writes():
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
        if self.trainer.is_global_zero and self._writes():
            self._log_videos(step)

    def _log_exposures(self) -> None:
        counts = [count for ledger in self.others(ExposureLedger) for count in ledger.per_video().values()]
        step = self.trainer.global_step
        if counts:
            self._submit(lambda writer: writer.histogram(EXPOSURE_HISTOGRAM.name, counts, step))

    def _alert(self, decision: Decision) -> None:
        """Once for each action and set of signals: a warning that stays is not repeated at every check."""
        kind, step = f"{decision.action} {'+'.join(decision.signals)}", self.trainer.global_step
        if decision.action == "continue" or kind in self._alerted:
            return
        self._alerted.add(kind)
        signals = titles(decision.signals, {each.name: each.words() for each in self.others(Signal)})
        title = f"{'Stopped by' if decision.action == 'stop' else 'Warning of'} {signals} at step {step}"
        text = self._without_names(decision.reason, decision)
        self._submit(lambda writer: writer.alert(title, text, step))

    def _log_videos(self, step: int) -> None:
        folder = self.run.samples(step)
        found: dict[str, LoggedVideo] = {}
        kinds = {"audit_": AUDIT_VIDEO, "": SAMPLE_VIDEO, "audit_pair_": NEAREST_VIDEO, "prompt_": PROMPT_VIDEO}
        for prefix, row in kinds.items():
            paths = [path for path in sorted(folder.glob(f"{prefix}[0-9]*.mp4")) if path not in self._shown]
            for number, path in enumerate(paths[: self.max_videos]):
                found[row.at(number)] = LoggedVideo(path, _prompt(path))
        self._shown |= {each.path for each in found.values()}
        if found:
            self._submit(lambda writer: writer.videos(found, step))

    def on_fit_end(self, *_: Any) -> None:
        """The videos of the kept weights, and the decision."""
        if not self.trainer.is_global_zero or not self._writes():
            return
        for stopping in self.others(OverfitStopping):
            self._log_videos(stopping.kept_step)
            self._decide(stopping)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """How far an interrupted or crashed run came."""
        self.attach(trainer, pl_module)
        if trainer.state.fn == "fit" and trainer.is_global_zero:
            for stopping in self.others(OverfitStopping):
                self._decide(stopping)

    def _decide(self, stopping: OverfitStopping) -> None:
        decision, step = dict(stopping.summary), self.trainer.global_step
        decision["reason"] = self._without_names(str(decision.get("reason", "")), stopping.decision)
        kept = None if decision.get("kept_gain") is None else -decision["kept_gain"]
        self._submit(lambda writer: writer.decision(decision, kept, step))

    def _writes(self) -> bool:
        return any(isinstance(each, BackgroundLogger) and writer_for(each.logger) for each in self.trainer.loggers)

    def _submit(self, task: Callable[[RunWriter], object]) -> None:
        """Have each logger's thread do a task."""
        for each in self.trainer.loggers:
            if isinstance(each, BackgroundLogger) and (writer := writer_for(each.logger)) is not None:
                each.submit(partial(_of_writer, task, writer))

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


def _of_writer(task: Callable[[RunWriter], object], writer: RunWriter, _: Logger) -> None:
    task(writer)


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
