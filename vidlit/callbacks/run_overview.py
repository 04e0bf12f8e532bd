"""What a run is about to do, and what it did: a table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.text import Text

from vidlit.latents.encoding import num_cores
from vidlit.models.adapters import LoRA
from vidlit.runs.closing import NO_SIGNAL, go_on
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import EXPOSURE_MEAN
from vidlit.runs.wording import wrapped
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, band
from vidlit.stopping.rule import MEASURED_VIDEOS
from vidlit.training.blocks.compiling import COST
from vidlit.training.blocks.kept_dtypes import held_bytes
from vidlit.training.blocks.recompute import chosen_blocks
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.memory import Memory
    from vidlit.training.module import VideoDiffusionModule

Facts = Sequence[tuple[str, str]]


class RunOverview(RunCallback):
    """Says before anything is scored where the run is, what it trains with, and what there is to train on."""

    def __init__(self) -> None:
        self._said = False

    def on_sanity_check_start(self, *_: Any) -> None:
        """Print the table of a run that begins: scoring the base may take long."""
        self._say()

    def on_train_start(self, *_: Any) -> None:
        """Print the table of a run that goes on, and knows now from which step."""
        self._say()

    def _say(self) -> None:
        if self.trainer.is_global_zero and not self._said:
            facts = (
                *run_facts(self.trainer, self.module, self.run),
                *dataset_facts(self.trainer, self.data),
                *model_facts(self.trainer, self.module),
            )
            print_facts(facts)
        self._said = True


def print_facts(facts: Facts, console: Console | None = None) -> None:
    """Print names and what they are: side by side on a terminal, a line each elsewhere."""
    console = console or Console()
    show = partial(console.print, highlight=False, soft_wrap=True, markup=False, emoji=False)  # names are the user's
    if not console.is_terminal:
        for name, fact in facts:
            show(f"{name}: {fact}")
        return
    width = 2 + max((len(name) for name, _ in facts), default=0)
    for name, fact in facts:
        for number, line in enumerate(wrapped(fact, console, indent=width)):
            show(Text.assemble((("" if number else name).ljust(width), "dim"), line))


def run_facts(trainer: Trainer, pl_module: VideoDiffusionModule, directory: RunDirectory) -> Facts:
    """Where the run is, and what it trains: base, device, precision, rate, adapter."""
    device, adapter = trainer.strategy.root_device, pl_module.adapter
    match device.type:
        case "cuda":
            memory = torch.cuda.get_device_properties(device).total_memory
            shown = f"{torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB"
        case "cpu":
            shown = f"CPU, {num_cores()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB"
        case kind:
            shown = kind.upper()
    frozen = f", frozen weights in {pl_module.memory.base_dtype}" if pl_module.memory.lowers_base else ""
    lora = f"{adapter.title} of rank {adapter.rank}, alpha {adapter.alpha:g}" if isinstance(adapter, LoRA) else ""
    return [
        ("run", str(directory.path)),
        ("base", pl_module.base),
        ("device", shown if trainer.world_size == 1 else f"{trainer.world_size} processes, the first on {shown}"),
        ("precision", f"{trainer.precision}{frozen}"),
        ("learning rate", _rate(trainer, pl_module)),
        ("adapter", lora or "none: the weights themselves are trained"),
    ]


def _rate(trainer: Trainer, pl_module: VideoDiffusionModule) -> str:
    """The highest of each group of parameters: a schedule and the warm-up start below it."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    rates = dict.fromkeys(f"{group.get('initial_lr', group['lr']):.3g}" for group in groups)
    names = dict.fromkeys(type(optimizer).__name__ for optimizer in trainer.optimizers)
    warmup = f", after {pl_module.warmup_steps:,} steps of warm-up" if pl_module.warmup_steps else ""
    return f"{', '.join(rates)} ({', '.join(names)}){warmup}"


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
    held_out = len({clip.source.group for clip in data.val_clips})
    if 0 < held_out < MEASURED_VIDEOS and data.splitting.fold is None:  # a fold is one answer of several
        facts.append(
            (
                "warning",
                f"few validation recordings ({held_out}): the stop was measured with {MEASURED_VIDEOS} and more. "
                "`vidlit kfold` lets each recording be for validation once.",
            )
        )
    used, *left_out = data.usage.lines()
    facts += [("source", used), *(("left out", line) for line in left_out)]
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
    num_blocks = max(1, len(repeated_blocks(next(iter(pl_module.transformers.values())))))
    held = _certain_bytes(trainer, pl_module)
    return [
        ("parameters", f"{_count(trained)} of {_count(total)} trained ({100 * trained / total:.3g} %)"),
        *_block_facts(pl_module.memory.settled(trainer.strategy.root_device), num_blocks),
        ("memory", f"{held / 1e9:.2f} GB for weights, gradients and the optimizer; activations not counted"),
    ]


def _certain_bytes(trainer: Trainer, pl_module: VideoDiffusionModule) -> float:
    """Of this rank: weights, gradients, averages, and moments, before the first step two for each trained weight."""
    parameters = [_local(each) for model in pl_module.transformers.values() for each in model.parameters()]
    gradients = held_bytes([each for each in parameters if each.requires_grad])
    states = [value for each in trainer.optimizers for state in each.state.values() for value in state.values()]
    moments = held_bytes([_local(value) for value in states if isinstance(value, torch.Tensor)]) or 2 * gradients
    averages = [] if pl_module.averaged is None else [_local(each) for each in pl_module.averaged.buffers()]
    return float(held_bytes(parameters) + gradients + moments + held_bytes(averages))


def _local(tensor: Any) -> Any:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _block_facts(memory: Memory, num_blocks: int) -> Facts:
    """How the blocks are run, where it is not as they are."""
    share = memory.gradient_checkpointing
    recomputed = 0 if share == "auto" else len(chosen_blocks(num_blocks, share))
    words = []
    if recomputed:
        words.append(f"{recomputed} of {num_blocks} are recomputed in the backward pass, but for their attention")
    if memory.compile:
        words.append(f"compiled at their first step, which takes {COST}")
    return [("blocks", "; ".join(words))] if words else []


def closing_facts(summary: dict[str, Any], directory: RunDirectory) -> Facts:
    """Where the results are, and how to go on."""
    places = {
        "weights": directory.weights,
        "samples": directory.path / "samples",
        "report": directory.report,
        "run": directory.path,
    }
    facts = [(name, str(path)) for name, path in places.items() if path.exists()]
    if options := go_on(summary, directory):
        facts.append(("go on with" if summary["stopped_by"] in NO_SIGNAL else "go on all the same", options))
    return facts


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
