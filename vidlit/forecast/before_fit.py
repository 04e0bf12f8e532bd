"""The forecast at the beginning of a fit: options that are chosen by it, and what cannot fit is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vidlit.errors import UserError
from vidlit.forecast.card import CONTEXT, GraphicsCard, card_here
from vidlit.forecast.memory_forecast import CHECKS, TRAINING, WITH_MODEL, setting_of
from vidlit.forecast.remedies import Option, resolved, single_changes
from vidlit.forecast.step_memory import CannotRunError
from vidlit.lightning_internals import datamodule_of

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from vidlit.data.clip_folder import ClipFolder
    from vidlit.training.memory import Memory
    from vidlit.training.module import VideoDiffusionModule

IGNORE = "run.ignore_memory_forecast"
_SHOWN = 5  # remedies in a message


def run_of(trainer: Trainer, module: VideoDiffusionModule, data: ClipFolder, *, audits: bool = True) -> Option:
    """A fit as the forecast sees it, before its weights are loaded."""
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    setting = setting_of(
        data,
        precision=trainer.precision,
        accumulate=int(trainer.accumulate_grad_batches),
        clip_val=trainer.gradient_clip_val,
        shards=trainer.world_size if sharded else 1,
        audits=audits,
        replicated=isinstance(trainer.strategy, DDPStrategy),
    )
    return Option(module, setting, data.buckets)


def prepare_memory(
    trainer: Trainer, module: VideoDiffusionModule, *, ignore: bool = False, audits: bool = True
) -> float | None:
    """Choose what ``model.memory`` leaves to the forecast, in place, and refuse what the card cannot hold.

    Does nothing without a CUDA GPU, nor for a model that cannot be run without values. The first rank decides for all.

    Args:
        trainer: of the fit, when it knows its devices.
        module: whose weights are not loaded yet.
        ignore: refuse nothing.
        audits: are videos decoded while training goes on?

    Returns:
        Bytes that steps and checks are to allocate at most; ``None`` where that is not known.

    Raises:
        UserError: more than the card has; says what would fit.
    """
    if trainer.strategy.root_device.type != "cuda":
        return None
    data = datamodule_of(trainer)
    decided = _decide(trainer, module, data, ignore=ignore, audits=audits) if trainer.is_global_zero else None
    shared: tuple[Memory, float | None, str] = trainer.strategy.broadcast(decided)  # type: ignore[assignment]  # of rank 0
    module.memory, peak, refusal = shared
    if refusal:
        raise UserError(refusal)
    return peak


def refuse_early(trainer: Trainer, module: VideoDiffusionModule, data: ClipFolder, *, audits: bool = True) -> None:
    """Refuse what the card cannot hold before anything is encoded, when processes do not know each other yet.

    Args:
        trainer: of the fit.
        module: to be trained; it stays as it is.
        data: the clips.
        audits: as for :func:`prepare_memory`.

    Raises:
        UserError: as there.
    """
    if trainer.strategy.root_device.type == "cuda":
        *_, refusal = _decide(trainer, module, data, ignore=False, audits=audits)
        if refusal:
            raise UserError(refusal)


def _decide(
    trainer: Trainer, module: VideoDiffusionModule, data: ClipFolder, *, ignore: bool, audits: bool
) -> tuple[Memory, float | None, str]:
    """What the module's memory is to be, bytes of steps and checks, and why the run is refused, or nothing."""
    card = card_here(trainer.strategy.root_device)
    assert card is not None
    try:
        run = resolved(run_of(trainer, module, data, audits=audits), card.memory)
        # Encoding may be over by now, or have been done elsewhere.
        peaks = {phase: size for phase, size in run.peaks().items() if phase in WITH_MODEL}
        refusal = "" if ignore else refused(run, peaks, card)
    except (CannotRunError, UserError):
        return module.memory, None, ""
    return run.module.memory, max(peaks[TRAINING], peaks[CHECKS]), refusal


def refused(run: Option, peaks: Mapping[str, float], card: GraphicsCard) -> str:
    """Why a run cannot fit, whatever the allocator does; nothing where it may.

    Args:
        run: of the forecast.
        peaks: of its phases.
        card: that it is to run on.
    """
    phase = max(peaks, key=lambda name: peaks[name])
    if peaks[phase] + CONTEXT <= card.memory:
        return ""
    remedies = words_of_changes(single_changes(run, tuple(peaks), memory=card.memory), card)
    return (
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
