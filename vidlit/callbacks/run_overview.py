"""What a run is about to do, and what it did: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import EXPOSURE_MEAN
from vidlit.runs.signal_words import read_signals, titles
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, band
from vidlit.training.memory_advice import memory_use
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.module import VideoDiffusionModule

Facts = Sequence[tuple[str, str]]


class RunOverview(RunCallback):
    """Says before training what there is to train on, how often it will be seen, and what is trained."""

    def on_fit_start(self, *_: Any) -> None:
        """Print the table."""
        if self.trainer.is_global_zero:
            print_facts([*dataset_facts(self.trainer, self.data), *model_facts(self.trainer, self.module)])


def print_facts(facts: Facts, console: Console | None = None) -> None:
    """Print names and what they are."""
    console = console or Console()
    if not console.is_terminal:
        for name, fact in facts:
            console.print(f"{name}: {fact}", highlight=False, soft_wrap=True, markup=False, emoji=False)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, Text(fact))  # never markup: it names folders of the user
    console.print(table, highlight=False)


def dataset_facts(trainer: Trainer, data: LatentDataModule) -> Facts:
    """Clips, buckets, steps, and the exposures they come to."""
    sides = {"for training": data.train_clips, "for validation": data.val_clips, "for the test": data.test_clips}
    clips = ", ".join(
        f"{len(clips)} of {len({clip.source.group for clip in clips})} recordings {what}"
        for what, clips in sides.items()
        if clips
    )
    buckets = Counter(str(clip.bucket) for clip in data.train_clips)
    samples = data.samples_per_batch * trainer.accumulate_grad_batches
    videos = len({clip.source.group for clip in data.train_clips})
    facts = [
        ("clips", clips),
        ("buckets", ", ".join(f"{bucket} ({count})" for bucket, count in sorted(buckets.items()))),
    ]
    used, *left_out = data.usage.lines()
    facts += [("used", used), *(("left out", line) for line in left_out)]
    if trainer.max_steps > 0:
        mean = trainer.max_steps * samples / videos
        limits = [max(1, int(limit * videos / samples)) for limit in (CONSERVATIVE, MODERATE)]
        facts += [
            ("steps", f"at most {trainer.max_steps:,} of {samples:g} samples, from step {trainer.global_step:,}"),
            (
                "exposures",
                f"{EXPOSURE_MEAN.text(mean)} of each video at the last step: {band(mean)} (conservative up to step "
                f"{limits[0]:,}, moderate up to {limits[1]:,})",
            ),
        ]
    return facts


def model_facts(trainer: Trainer, pl_module: VideoDiffusionModule) -> Facts:
    """What is trained, and the memory that it takes before the first batch."""
    parameters = [each for transformer in pl_module.transformers.values() for each in transformer.parameters()]
    trained = sum(each.numel() for each in parameters if each.requires_grad)
    total = sum(each.numel() for each in parameters)
    use = memory_use(trainer, pl_module)
    held = use.frozen_bytes + use.trained_bytes + use.gradients + use.moments + use.averages
    return [
        ("parameters", f"{_count(trained)} of {_count(total)} trained ({100 * trained / total:.3g} %)"),
        ("memory", f"{held / 1e9:.2f} GB for weights, gradients and the optimizer; activations not counted"),
    ]


def closing_facts(summary: dict[str, Any], directory: RunDirectory) -> Facts:
    """The decision, and where the results are."""
    stopped_by = titles(summary["stopped_by"].split("+"), read_signals(directory))
    found = [("stopped by", f"{stopped_by}, at step {summary['stop_step']:,}")]
    if summary.get("best_step") is not None:
        found.append(("best step", f"{summary['best_step']:,}"))
    places = {
        "weights": directory.weights,
        "samples": directory.path / "samples",
        "report": directory.report,
        "everything else": directory.path,
    }
    return [*found, *((name, str(path)) for name, path in places.items() if Path(path).exists())]


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
