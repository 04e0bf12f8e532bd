"""What ``vidlit validate`` and ``vidlit test`` say of a checkpoint, against the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from vidlit.diffusion.batch import LatentBatch, clip_key
from vidlit.metrics.paired_loss import PairedLoss, PairedSummary, scored_rows, summarise
from vidlit.models.parts import Part
from vidlit.runs.directory import write_text
from vidlit.runs.logged_names import EXPOSURE_MEAN, VAL_LOG_RATIO
from vidlit.runs.wording import say
from vidlit.sampling.audit import Audit
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.sample_videos import SampleVideos
from vidlit.signals.scored_clips import ScoredClip, by_recording
from vidlit.stopping.exposure import video_exposures
from vidlit.stopping.verdict import Verdict
from vidlit.training.kept_weights import as_base
from vidlit.training.run_callback import RunCallback
from vidlit.training.step.objective import scored_sigmas


@dataclass(frozen=True)
class Validate:
    """Loss of the validation clips and of a training subset, by recording, against the base model.

    Args:
        json: whether to print one JSON object, and everything else on stderr.
        output: file for the same JSON object; ``None`` for none.
    """

    json: bool = False
    output: Path | None = None


class ValidationTable(RunCallback):
    """Prints what ``vidlit validate`` scored, recording by recording, against step 0 of the checkpoint's run.

    Args:
        monitor: that scored them.
    """

    def __init__(self, monitor: DivergenceMonitor) -> None:
        self.monitor = monitor
        self.found: dict[str, Any] = {}
        """All of it, as JSON takes it; on rank 0."""
        self._step: int | None = None
        self._exposures: dict[int, int] = {}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Which step this is, and how often clips had been seen by then."""
        self._step = int(checkpoint["global_step"])
        state = checkpoint.get("vidlit_exposure", {})
        if "keys" in state:
            self._exposures = dict(zip(state["keys"].tolist(), state["counted"].tolist(), strict=True))

    def on_validation_start(self, *_: Any) -> None:
        """Say so where it is the base model that is scored."""
        if self.trainer.state.fn == "validate" and self.trainer.is_global_zero and self._step is None:
            say("Scoring the base model itself: name a checkpoint with --ckpt_path FILE, or best or last of a run.")

    def on_validation_end(self, *_: Any) -> None:
        """Print, and keep."""
        if self.trainer.state.fn != "validate" or not self.trainer.is_global_zero:
            return
        summaries = self.monitor.summaries()
        names = {"val": "validation", "train_eval": "training subset"}
        several = len(self.monitor.parts) > 1
        print_summaries(
            {names[name] + (f", {part}" if several else ""): each for (part, name), each in summaries.items()}
        )
        scored = []
        for part, curves in self.monitor.parts.items():
            for name, clips in curves.scored_clips(self._exposures).items():
                groups, summary = by_recording(clips, self._per_recording()), summaries.get((part, name))
                print_scored(names[name] + (f", {part}" if several else ""), groups)
                about = {} if summary is None else _without_nan(asdict(summary))
                rows = {"groups": [asdict(row) for row in groups], "each_clip": [asdict(row) for row in clips]}
                scored.append({"set": name, "part": part, **about, **rows})
        checkpoint = str(self.trainer.ckpt_path) if self.trainer.ckpt_path is not None else None
        self.found = {"checkpoint": checkpoint, "step": self._step or 0, "scored": scored}

    def _per_recording(self) -> dict[str, int]:
        """Exposures of the recordings that are trained on, where the checkpoint says."""
        clips = self.data.train_clips if self._exposures else []
        seen = [self._exposures.get(clip_key(clip.clip_id), 0) for clip in clips]
        return video_exposures(seen, [clip.source.group for clip in clips])


class Evaluation(RunCallback):
    """The full audit of ``vidlit test``: losses, copies and diversity on clips that neither training nor stopping saw.

    The base model is measured first, in the same way, because each number only means something against its own.
    ``results.json`` and the sampled videos go to ``test/step_XXXXXX`` of the checkpoint's run directory; without a
    checkpoint the base model alone is measured and nothing is written.

    Args:
        samples: how to audit.
    """

    def __init__(self, samples: SampleVideos) -> None:
        self.samples = samples
        self.step: int | None = None
        self.audit: Audit | None = None
        self._tables: dict[str, PairedLoss] = {}
        self._references: dict[str, Tensor] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """One table for the losses, and the prompts of the audit."""
        super().setup(trainer, pl_module, stage)
        num_clips = len(self.data.test_clips)
        self._tables = {part.name: PairedLoss(num_clips, self.module.num_strata) for part in self.module.parts.parts}
        self.audit = self.samples.make_audit(self.data, self.data.test_clips)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Which step this is."""
        self.step = int(checkpoint["global_step"])

    def on_test_start(self, *_: Any) -> None:
        """Measure the base model, and put the trained weights, or their average, back."""
        if self.step is not None and self.module.averaged is not None:
            self.module.averaged.copy_to_parameters()
        for table in self._tables.values():
            table.to(self.module.device).reset()
        if self.audit is not None:
            self.audit.prepare(self.trainer, self.module)
        if self.step is None:
            return
        with as_base(self.module):
            # A loader of its own: Lightning has begun to read from the other.
            for batch in self.data.test_dataloader():
                batch = self.trainer.strategy.batch_to_device(batch, dataloader_idx=0)
                with self.trainer.precision_plugin.test_step_context():
                    self._add(batch, self.module.validation_step(batch, 0))
            for name, table in self._tables.items():
                self._references[name] = table.compute().cpu()
                table.reset()
            if self.audit is not None:
                self.audit.run(self.trainer, self.module, 0, None)

    def on_test_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Feed the losses of one batch."""
        self._add(batch, outputs)

    def _add(self, batch: LatentBatch, losses: Mapping[str, Tensor]) -> None:
        for part in self.module.parts.scored:
            examples = batch.has(part.marker).cpu()
            self._tables[part.name].update(batch.indices[examples], losses[part.name][examples])

    def on_test_end(self, *_: Any) -> None:
        """Audit, write and print."""
        if self.step is None or not self._references:
            return
        folder = self.run.test(self.step)
        summaries = {part.name: self._summary(part) for part in self.module.parts.parts}
        summaries = {name: summary for name, summary in summaries.items() if summary.clips}
        results: dict[str, Any] = {"checkpoint": str(self.trainer.ckpt_path), "step": self.step}
        if len(summaries) == 1:
            results |= asdict(next(iter(summaries.values())))
        else:
            results["parts"] = {name: asdict(summary) for name, summary in summaries.items()}
        verdicts: list[Verdict] = []
        if self.audit is not None:
            self.audit.run(self.trainer, self.module, self.step, folder)
            verdicts = [self.audit.copies(folder.relative_to(self.run.path)), self.audit.diversity()]
            results |= {verdict.signal: _as_json(verdict) for verdict in verdicts}
            results["quality"] = self.audit.quality
        if self.trainer.is_global_zero:
            write_text(folder / "results.json", dumps(results, indent=2) + "\n")
            print_summaries(
                {"test" + (f", {name}" if len(summaries) > 1 else ""): each for name, each in summaries.items()}
            )
            for verdict in verdicts:
                say(f"{verdict.signal}: {verdict.reason}")
            say(f"Written to {folder}")

    def _summary(self, part: Part) -> PairedSummary:
        losses, reference = self._tables[part.name].compute().cpu(), self._references[part.name]
        rows = scored_rows(reference) if part.marker else torch.arange(len(reference))
        clips = [self.data.test_clips[row] for row in rows.tolist()]
        sigmas, videos = scored_sigmas(self.module, clips, part), [clip.source.group for clip in clips]
        return summarise(losses[rows], reference[rows], sigmas, videos)


def _as_json(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON, without the words of a run that could be stopped."""
    return {"alarm": verdict.action != "continue", "reason": verdict.reason, **verdict.evidence}


def _without_nan(numbers: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(each, float) and math.isnan(each) else each for name, each in numbers.items()}


def print_scored(title: str, rows: Sequence[ScoredClip], console: Console | None = None) -> None:
    """A table of recordings, those that gained least first; change and exposures where they are known."""
    table = Table(title=title)
    table.add_column("recording", overflow="fold")
    changes, seen = (any(getattr(row, name) is not None for row in rows) for name in ("log_ratio", "exposures"))
    for name in ("clips", *(("base",) if changes else ()), "loss", *(("change",) if changes else ())):
        table.add_column(name, justify="right", no_wrap=True)
    if seen:
        table.add_column("exposures", justify="right", no_wrap=True)
    for row in rows:
        base = [] if row.reference is None else [f"{row.reference:.4f}"]
        change = [] if row.log_ratio is None else [VAL_LOG_RATIO.text(row.log_ratio)]
        exposures = [] if not seen else ["n/a" if row.exposures is None else EXPOSURE_MEAN.text(row.exposures)]
        table.add_row(Text(row.name), str(row.clips), *base, f"{row.loss:.4f}", *change, *exposures)
    (console or Console()).print(table)


def print_summaries(summaries: dict[str, PairedSummary]) -> None:
    """A table of paired losses, one row a set of clips; none where no clip was an example for any part."""
    if not summaries:
        return
    bins = max(len(summary.log_ratio_bins) for summary in summaries.values())
    table = Table(title="loss of the denoiser, each clip against itself under the base model")
    table.add_column("clips", no_wrap=True)
    for name in ("clips", "videos", "base", "now", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("by noise level, low to high", justify="right")
    for name, summary in summaries.items():
        error = summary.standard_error
        spread = "" if math.isnan(error) else f" ± {100 * error:.2g}"
        table.add_row(
            name,
            str(summary.clips),
            str(summary.videos),
            f"{summary.reference:.4f}",
            f"{summary.loss:.4f}",
            f"{100 * math.expm1(summary.log_ratio):+.2f}{spread} %",
            " ".join(f"{100 * math.expm1(value):+.1f} %" for value in summary.log_ratio_bins[:bins]),
        )
    Console().print(table)
