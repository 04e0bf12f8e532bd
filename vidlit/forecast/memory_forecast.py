"""What a run holds on a GPU in each of its phases, foretold from the configs of its base."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from vidlit.errors import UserError
from vidlit.forecast.card import needs
from vidlit.forecast.phases import decode_clips, encode_captions, encode_clips
from vidlit.forecast.step_memory import CHECK, OPTIMIZER, CannotRunError, StepMemory, StepSetting, step_memory
from vidlit.forecast.tensor_memory import (
    ACTIVATIONS,
    AVERAGES,
    FROZEN,
    GRADIENTS,
    MOMENTS,
    TEMPORARIES,
    TRAINED,
    Held,
    highest,
)
from vidlit.training.blocks.block_swap import BUFFERS
from vidlit.training.precision import precision_name

if TYPE_CHECKING:
    from vidlit.data.clip_folder import ClipFolder
    from vidlit.training.module import VideoDiffusionModule

CAPTIONS, CLIPS, TRAINING, CHECKS, AUDITS, END = PHASES = (
    "encode captions",
    "encode clips",
    "train",
    "checks",
    "audits",
    "export",
)
WITH_MODEL = (TRAINING, CHECKS, AUDITS, END)
"""Phases with the transformer on the GPU."""
_KEPT_COMPILED = 0.68
"""Of the activations that blocks keep for the backward pass, what compiled ones keep: 20.2 of 30.3 GB (LTX-Video 2B,
all weights) and 12.0 of 17.5 GB (its LoRA) on an H100, torch 2.11."""
_GATHERED = 2
"""Blocks that are whole at once under FSDP2: the one at work and the next."""


@dataclass(frozen=True)
class RunSetting(StepSetting):
    """What the memory of a run depends on beside the module.

    Args:
        shards: ranks that share weights, gradients and moments (FSDP2).
        processes: on this machine: each loads the base into main memory.
        audits: are videos decoded while training goes on?
        tiled: are clips encoded in tiles?
        replicated: does each of several ranks hold the whole model (DDP)?
    """

    shards: int = 1
    processes: int = 1
    audits: bool = True
    tiled: bool = False
    replicated: bool = False


@dataclass(frozen=True)
class Phase:
    """One part of a run.

    Args:
        name: of :data:`PHASES`.
        held: at its peak; ``None`` where that cannot be told.
        why: it cannot.
    """

    name: str
    held: Held | None
    why: str = ""

    @property
    def peak(self) -> float:
        """Bytes; 0 where unknown."""
        return self.held.total if self.held is not None else 0.0


@dataclass(frozen=True)
class MemoryForecast:
    """Memory of all phases of a run.

    Args:
        phases: in order.
        main_memory: bytes in main memory while the base is loaded.
        bucket: the clips that take most.
        batch_size: their number in a micro-batch.
    """

    phases: Sequence[Phase]
    main_memory: float
    bucket: str
    batch_size: int

    def phase(self, name: str) -> Phase:
        """By its name."""
        return next(phase for phase in self.phases if phase.name == name)

    @property
    def highest(self) -> Phase:
        """The phase that holds most."""
        return max(self.phases, key=lambda phase: phase.peak)

    @property
    def peak(self) -> float:
        """Bytes allocated at most."""
        return self.highest.peak

    @property
    def needs(self) -> float:
        """Bytes that a card has to have: with what lies between tensors, and CUDA's context."""
        return needs(self.peak)

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it, in GB."""
        return {
            "bucket": self.bucket,
            "batch_size": self.batch_size,
            "peak_gb": self.peak / 1e9,
            "needs_gb": self.needs / 1e9,
            "highest": self.highest.name,
            "main_memory_gb": self.main_memory / 1e9,
            "phases": {
                phase.name: {"peak_gb": phase.peak / 1e9}
                | {kind: size / 1e9 for kind, size in phase.held.kinds.items() if size > 0}
                if phase.held is not None
                else {"unknown": phase.why}
                for phase in self.phases
            },
        }


def foretell(module: VideoDiffusionModule, setting: RunSetting) -> MemoryForecast:
    """The memory of a run.

    Args:
        module: what is trained; it stays as it is, and its weights are not read.
        setting: of the run, with the clips that take most.

    Raises:
        UserError: the shapes of what the transformer reads are not known.
    """
    try:
        phases = phases_of(module, setting, measured_steps(module, setting))
    except CannotRunError as error:
        unknown = [Phase(name, None, str(error)) for name in WITH_MODEL if setting.audits or name != AUDITS]
        return MemoryForecast([*_encoding(module, setting), *unknown], 0.0, str(setting.bucket), setting.batch_size)
    resident = phases[-1].held or Held()
    loaded = setting.processes * setting.shards * resident.of(FROZEN, TRAINED)
    return MemoryForecast(phases, loaded, str(setting.bucket), setting.batch_size)


def phases_of(module: VideoDiffusionModule, setting: RunSetting, steps: StepMemory) -> list[Phase]:
    """All phases of a run, in order.

    Args:
        module: what is trained.
        setting: of the run.
        steps: of its training, before what is reckoned by rule for all runs.
    """
    steps = adjusted(steps, module, setting)
    check = steps.peaks[CHECK]
    resident = check.without(ACTIVATIONS, TEMPORARIES)
    phases = [*_encoding(module, setting), Phase(TRAINING, training_peak(steps)), Phase(CHECKS, check)]
    if setting.audits:
        tiled = module.memory.tiled_decoding is True
        decoding = _phase(AUDITS, lambda: decode_clips(module.family, setting.bucket, tiled).plus(resident))
        sampling = Phase(AUDITS, check)  # asks the same transformer, one video at a time
        phases.append(max(decoding, sampling, key=lambda phase: phase.peak) if not decoding.why else decoding)
    return [*phases, Phase(END, resident)]


def _encoding(module: VideoDiffusionModule, setting: RunSetting) -> list[Phase]:
    """The phases before training."""
    family = module.family
    return [
        _phase(CAPTIONS, lambda: encode_captions(family)),
        _phase(CLIPS, lambda: encode_clips(family, setting.bucket, setting.tiled)),
    ]


def measured_steps(module: VideoDiffusionModule, setting: RunSetting) -> StepMemory:
    """Training steps before what is reckoned by rule; each kind of them is run once.

    Raises:
        CannotRunError: the model cannot be run without values.
    """
    share = module.memory.settled(torch.device("cuda" if setting.on_gpu else "cpu")).gradient_checkpointing
    if isinstance(share, float) and 0 < share < 1:
        none, every = (measured_steps(_recomputing(module, all_or_none), setting) for all_or_none in (False, True))
        return mixed(none, every, share)
    # Shards are gathered in bfloat16, and a single sharded weight is not cast.
    casts = False if setting.shards > 1 else module.memory.cast_once
    plain = replace(
        module.memory, gradient_checkpointing=share, compile=False, swap_blocks=0, cast_once=casts, tiled_decoding=False
    )
    measured = replace(setting, shards=1, processes=1, audits=True, tiled=False, replicated=False)
    key = (id(module.family), id(module.optimizer), id(module.adapter), plain, measured)
    if key not in _STEPS:
        asked = copy.copy(module)
        asked.memory = plain
        # While these are here no others have their ids. Not the module: it will have weights.
        _STEPS[key] = (module.family, module.optimizer, module.adapter), step_memory(asked, measured)
    return _STEPS[key][1]


_STEPS: dict[Any, tuple[Any, StepMemory]] = {}


def _recomputing(module: VideoDiffusionModule, share: bool) -> VideoDiffusionModule:
    changed = copy.copy(module)
    changed.memory = replace(module.memory, gradient_checkpointing=share)
    return changed


def training_peak(steps: StepMemory) -> Held:
    """The most that is held in a step."""
    found = [held for stage, held in steps.peaks.items() if stage.startswith("batch")]
    return highest(reversed(found))  # of equals the last one, which knows moments


def adjusted(steps: StepMemory, module: VideoDiffusionModule, setting: RunSetting) -> StepMemory:
    """With what is not run on fake tensors, by rule: compiled blocks, shards, blocks in main memory."""
    if setting.on_gpu and module.memory.compile in (True, "auto"):
        steps = steps.changed(lambda held: held.scaled({ACTIVATIONS: _KEPT_COMPILED}))
    if module.context_parallel > 1:  # each rank has its share of the tokens
        steps = steps.changed(lambda held: held.scaled({ACTIVATIONS: 1 / module.context_parallel}))
    if module.memory.swaps:
        steps = swapping(steps, int(module.memory.swap_blocks))
    if setting.replicated:
        steps = in_buckets(steps, setting.accumulate)
    return sharding(steps, setting) if setting.shards > 1 else steps


def swapping(steps: StepMemory, blocks: int) -> StepMemory:
    """With so many frozen blocks in main memory, which come to a ring of buffers."""
    left, saved = blocks, 0.0
    for block, count in reversed(list(zip(steps.block, steps.num_blocks, strict=False))):  # the last blocks
        here = min(left, count)
        saved += here * block.of(FROZEN)
        left -= here
    ring = BUFFERS * max((block.of(FROZEN) for block in steps.block), default=0.0)
    return steps.changed(lambda held: held.plus(Held({FROZEN: min(0.0, ring - saved)})))


def in_buckets(steps: StepMemory, accumulate: int) -> StepMemory:
    """With DDP's buckets, which hold all gradients for good; those of micro-batches add up beside them.

    Args:
        steps: of one rank by itself.
        accumulate: micro-batches of a step, of which the last one alone is told to other ranks.
    """

    def change(held: Held) -> Held:
        here = held.of(GRADIENTS) if accumulate == 1 else 0.0
        return held.plus(Held({GRADIENTS: held.of(TRAINED) - here}))

    return steps.changed(change)


def sharding(steps: StepMemory, setting: RunSetting) -> StepMemory:
    """With weights, gradients, moments and averages spread over ranks, and whole blocks where they are at work."""
    share = 1 / setting.shards
    width = 0.5 if "bf16" in setting.precision else 1.0  # gathered in bfloat16
    block = max((block.of(FROZEN, TRAINED) for block in steps.block), default=0.0)
    trained = max((block.of(TRAINED) for block in steps.block), default=0.0)
    whole = Held({TEMPORARIES: _GATHERED * width * block + trained})
    factors = dict.fromkeys((FROZEN, TRAINED, GRADIENTS, MOMENTS, AVERAGES), share)
    peaks = {}
    for stage, held in steps.peaks.items():
        if stage.endswith(OPTIMIZER):  # works on its own share, and no block is whole
            peaks[stage] = held.scaled({**factors, TEMPORARIES: share})
        else:
            peaks[stage] = held.scaled(factors).plus(whole)
    return replace(steps, peaks=peaks)


def mixed(kept: StepMemory, recomputed: StepMemory, share: float) -> StepMemory:
    """Between no block recomputed and all of them: a share, spread evenly.

    Args:
        kept: steps in which nothing is recomputed.
        recomputed: steps in which every block is.
        share: of the blocks that are.
    """
    peaks = {}
    for stage, held in recomputed.peaks.items():
        between = held.scaled(dict.fromkeys(held.kinds, share))
        between = between.plus(kept.peaks[stage], 1 - share)
        if 0 < share < 1 and "backward" in stage:  # some block is recomputed whole, however few are
            again = max(0.0, held.of(TEMPORARIES) - kept.peaks[stage].of(TEMPORARIES))
            between = between.plus(Held({TEMPORARIES: (1 - share) * again}))
        peaks[stage] = between
    return replace(recomputed, peaks=peaks)


def largest(data: ClipFolder) -> tuple[Any, int, int]:
    """The bucket whose batch takes most, and its samples in training and validation."""
    temporal, pixels = data.family.compression[0], data.family.pixel_multiple
    sizes = zip(data.buckets, data.batch_sizes, data.val_batch_sizes, strict=True)
    return max(sizes, key=lambda row: (row[0].tokens(temporal, pixels) * row[1], math.prod(row[0])))


def setting_of(
    data: ClipFolder,
    *,
    precision: Any,
    accumulate: int,
    clip_val: float | None,
    shards: int = 1,
    processes: int = 1,
    audits: bool = True,
    replicated: bool = False,
) -> RunSetting:
    """What a run's memory depends on, of its data and its Trainer.

    Args:
        data: the clips, of which the largest bucket counts.
        precision: ``trainer.precision``.
        accumulate: ``trainer.accumulate_grad_batches``.
        clip_val: ``trainer.gradient_clip_val``.
        shards: see :class:`RunSetting`, and so the next two.
        processes: on this machine.
        audits: are there some?
        replicated: see :class:`RunSetting`.
    """
    bucket, size, val_size = largest(data)
    return RunSetting(
        bucket,
        batch_size=size,
        val_batch_size=val_size,
        precision=precision_name(precision),
        accumulate=accumulate,
        clip_val=clip_val,
        with_std=data.encoding.with_std,
        shards=shards,
        processes=processes,
        audits=audits,
        tiled=data.encoding.tiled,
        replicated=replicated,
    )


def _phase(name: str, measure: Callable[[], Held]) -> Phase:
    try:
        return Phase(name, measure())
    except (CannotRunError, UserError) as error:
        return Phase(name, None, str(error))


def gigabytes(held: Held) -> Mapping[str, float]:
    """By kind, those that count."""
    return {kind: size / 1e9 for kind, size in held.kinds.items() if size >= 0.005 * held.total}
