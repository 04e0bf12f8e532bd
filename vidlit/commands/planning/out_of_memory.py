"""What is said when a fit ran out of memory: what a step holds, and which options take less, most first."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch.strategies import DDPStrategy

from vidlit.forecast.before_fit import run_of, words
from vidlit.forecast.card import needs
from vidlit.forecast.memory_forecast import CHECKS, TRAINING, adjusted, training_peak
from vidlit.forecast.remedies import Option, single_changes
from vidlit.lightning_internals import datamodule_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vidlit.training.module import VideoDiffusionModule

_STEPS = (TRAINING, CHECKS)
"""Phases that count: encoding is over by then."""
_IN_GENERAL = (
    "Less would take --trainer.precision bf16-mixed; --model.memory.base_dtype bfloat16 or int8 for a LoRA; "
    "--model.memory.gradient_checkpointing true; --data.batches.size 1; or smaller --data.buckets."
)


def memory_advice(trainer: Trainer, module: VideoDiffusionModule) -> str:
    """In a few sentences; by the forecast, which needs main memory alone, and without it where it cannot be made.

    Args:
        trainer: of the fit that failed.
        module: that was trained.
    """
    try:
        return f"{_by_forecast(_as_it_ran(trainer, module))}{_beyond(trainer, module)}"
    except Exception:  # whatever it is, it is not what went wrong: memory ran out
        return f"{_IN_GENERAL}{_beyond(trainer, module)}"


def _as_it_ran(trainer: Trainer, module: VideoDiffusionModule) -> Option:
    device, run = trainer.strategy.root_device, run_of(trainer, module, datamodule_of(trainer))
    settled = copy.copy(module)
    settled.memory = module.memory.settled(device)
    return replace(run, module=settled, setting=replace(run.setting, on_gpu=device.type == "cuda"))


def _by_forecast(run: Option) -> str:
    held = training_peak(adjusted(run.steps, run.module, run.setting))
    parts = sorted(((kind, size) for kind, size in held.kinds.items() if size > 0), key=lambda part: -part[1])
    before = needs(run.peak_of(_STEPS))
    changes = sorted(single_changes(run, _STEPS), key=lambda change: change[1])
    options = [f"{words(changed)} (about {_size(before - needed)})" for changed, needed in changes]
    size = run.setting.batch_size
    clips = f"{size} clip{'s' * (size > 1)} of {run.setting.bucket}"
    return (
        f"A step with {clips} holds about {_size(held.total)}, a forecast: "
        f"{', '.join(f'{kind} {_size(part)}' for kind, part in parts)}. What would save most: "
        f"{'; '.join(options) or 'a smaller bucket or model'}."
    )


def _beyond(trainer: Trainer, module: VideoDiffusionModule) -> str:
    """What changes more than the forecast compares."""
    lora = "" if module.adapter is not None else " A LoRA (--model.adapter.rank 16) has small gradients and moments."
    shared = (
        " ModelParallelStrategy shares the weights between GPUs." if isinstance(trainer.strategy, DDPStrategy) else ""
    )
    return f"{lora}{shared}"


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
