"""The forecast at the beginning of a fit: options that are chosen by it, and what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vidlit.errors import UserError
from vidlit.forecast.card import GraphicsCard, card_here
from vidlit.forecast.memory_forecast import CONTEXT, setting_of
from vidlit.forecast.remedies import Option, resolved, single_changes
from vidlit.forecast.step_memory import CannotRunError
from vidlit.lightning_internals import datamodule_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vidlit.training.module import VideoDiffusionModule

IGNORE = "run.ignore_memory_forecast"
_SHOWN = 5  # remedies in a message


def run_of(trainer: Trainer, module: VideoDiffusionModule) -> Option:
    """A fit as the forecast sees it, before its weights are loaded."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    data: Any = datamodule_of(trainer)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    setting = setting_of(
        data,
        precision=trainer.precision,
        accumulate=int(trainer.accumulate_grad_batches),
        clip_val=trainer.gradient_clip_val,
        shards=trainer.world_size if sharded else 1,
    )
    return Option(module, setting, data.buckets)


def prepare_memory(trainer: Trainer, module: VideoDiffusionModule, *, ignore: bool) -> float | None:
    """Choose what ``model.memory`` leaves to the forecast, in place, and refuse what the card cannot hold.

    Does nothing without a CUDA GPU, nor for a model that cannot be run without values.

    Args:
        trainer: of the fit, when it knows its devices.
        module: whose weights are not loaded yet.
        ignore: refuse nothing.

    Returns:
        Bytes that training is to allocate at most; ``None`` where that is not known.

    Raises:
        UserError: more than the card has; says what would fit.
    """
    card = card_here() if trainer.strategy.root_device.type == "cuda" else None
    if card is None:
        return None
    run = run_of(trainer, module)
    try:
        run = resolved(run, card.memory)
        peaks = run.peaks()
    except (CannotRunError, UserError):
        return None
    module.memory = run.module.memory
    refuse(run, peaks, card, ignore=ignore)
    return max(peaks[phase] for phase in peaks if phase != "encode clips")


def refuse(run: Option, peaks: Mapping[str, float], card: GraphicsCard, *, ignore: bool) -> None:
    """Refuse a run that cannot fit, whatever the allocator does.

    Args:
        run: of the forecast.
        peaks: of its phases.
        card: that it is to run on.
        ignore: refuse nothing.

    Raises:
        UserError: it cannot.
    """
    phase = max(peaks, key=lambda name: peaks[name])
    if ignore or peaks[phase] + CONTEXT <= card.memory:
        return
    remedies = words_of_changes(single_changes(run, memory=card.memory), card)
    raise UserError(
        f"this will not fit: {peaks[phase] / 1e9:.1f} GB are forecast for the phase {phase!r} at {run.setting.bucket}, "
        f"and {card} has {card.memory / 1e9:.1f} GB. {remedies} To try all the same: --{IGNORE} true."
    )


def words_of_changes(changes: Sequence[tuple[Option, float]], card: GraphicsCard | None) -> str:
    """What would take less, in one sentence; those that fit by themselves first."""
    if not changes:
        return "A smaller bucket or another base would take less."
    enough = [row for row in changes if card is not None and row[1] <= card.memory]
    said = [f"{words(run)} ({needed / 1e9:.1f} GB)" for run, needed in (enough or changes)[:_SHOWN]]
    return f"{'It would fit with' if enough else 'Less would take'} {'; or '.join(said)}."


def words(run: Option) -> str:
    """The options that a run differs by, as the command line takes them."""
    return " ".join(f"--{name} {_word(value)}" for name, value in run.options.items())


def _word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
