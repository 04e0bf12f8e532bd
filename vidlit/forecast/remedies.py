"""What makes a run fit a card, in the order of what it costs in time; and what a card could hold beyond it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, get_args

from vidlit.forecast.card import needs
from vidlit.forecast.memory_forecast import (
    AUDITS,
    CLIPS,
    WITH_MODEL,
    RunSetting,
    measured_steps,
    phases_of,
)
from vidlit.forecast.step_memory import StepMemory
from vidlit.forecast.step_rules import Rule, always_cast, moments_in_8_bits, twice_the_samples, without_temporaries
from vidlit.training.blocks.block_swap import BUFFERS
from vidlit.training.blocks.kept_dtypes import FrozenDtype

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket

LOWERED = (CLIPS, *WITH_MODEL)
"""Phases of which some option takes less: what captions take is up to the base."""
SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the blocks, those that may be recomputed."""
_WORTH = 0.98
"""A change that leaves more than this share of the memory is not worth its cost."""
_ENOUGH = 3
"""Changes that fit by themselves, of which one may choose: no more are looked for."""
_EIGHT_BITS = "torchao.optim.AdamW8bit"


@dataclass(frozen=True)
class Option:
    """A run as it could be.

    Args:
        module: what would be trained.
        setting: of the run.
        buckets: of its clips, smallest first.
        options: what differs from the run as it is, by the names of the options.
        costs: of each of these, in words.
        origin: module and setting of the steps that are run; ``None`` for the option's own.
        rules: what makes of these the option's own.
    """

    module: VideoDiffusionModule
    setting: RunSetting
    buckets: Sequence[Bucket]
    options: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, str] = field(default_factory=dict)
    origin: tuple[VideoDiffusionModule, RunSetting] | None = None
    rules: Sequence[Rule] = ()

    def changed(self, costs: str, options: Mapping[str, Any], **parts: Any) -> Self:
        """With other options, parts and what that costs."""
        named = {" ".join(options): costs} if costs else {}
        return replace(self, **parts, options={**self.options, **options}, costs={**self.costs, **named})

    def with_memory(self, costs: str, **memory: Any) -> Self:
        """With other options of ``model.memory``."""
        module = copy.copy(self.module)
        module.memory = replace(module.memory, **memory)
        return self.changed(costs, {f"model.memory.{name}": value for name, value in memory.items()}, module=module)

    def peaks(self) -> dict[str, float]:
        """Bytes of every phase, by name; 0 of one that cannot be measured, so that it stands in no way.

        Raises:
            CannotRunError: the model cannot be run without values.
        """
        return {phase.name: phase.peak for phase in phases_of(self.module, self.setting, self.steps)}

    def peak_of(self, phases: Sequence[str] = LOWERED) -> float:
        """Bytes of the phase that takes most, of some."""
        return max(size for name, size in self.peaks().items() if name in phases)

    @property
    def peak(self) -> float:
        """Bytes of the phase that takes most, of :data:`LOWERED`."""
        return self.peak_of()

    @property
    def needs(self) -> float:
        """Bytes that a card has to have for them."""
        return needs(self.peak)

    @cached_property
    def steps(self) -> StepMemory:
        """Of its training, before what is reckoned by rule for all runs."""
        module, setting = self.origin or (self.module, self.setting)
        asked = copy.copy(module)
        asked.memory = replace(asked.memory, gradient_checkpointing=self.module.memory.gradient_checkpointing)
        steps = measured_steps(asked, setting)
        for rule in self.rules:
            steps = rule(steps, self.recomputed)
        return steps

    @property
    def recomputed(self) -> float:
        """The share of the blocks that are recomputed."""
        share = self.module.memory.gradient_checkpointing
        return 1.0 if share == "auto" else 1 / share if share and not isinstance(share, float) else float(share)

    def by_rule(self, before: Option, rule: Rule) -> Self:
        """With steps that are not run anew, but reckoned from those of the run before."""
        return replace(self, origin=before.origin or (before.module, before.setting), rules=(*before.rules, rule))

    def exact(self) -> Self:
        """With steps that are run."""
        return replace(self, origin=None, rules=())


def resolved(run: Option, memory: float | None) -> Option:
    """A run whose memory is to be chosen by itself (``auto``), with what was chosen.

    Steps are run twice at most, with all blocks recomputed and with none; all between is reckoned.

    Args:
        run: as it is asked for.
        memory: bytes of the card; ``None`` where there is none to choose by: everything is recomputed then.
    """
    options = run.module.memory
    if options.tiled_decoding == "auto":
        run = run.with_memory("", tiled_decoding=False)
        if memory is not None and run.setting.audits:
            run = run.with_memory("", tiled_decoding=needs(run.peaks()[AUDITS]) > memory)
    if options.gradient_checkpointing == "auto":
        shares = [False, *SHARES[:-1], True] if memory is not None else [True]
        tried = [run.with_memory("", gradient_checkpointing=share) for share in shares]
        if options.cast_once == "auto":
            tried = [each for with_copies in tried for each in (with_copies, _cast_always(with_copies)) if each]
        run = _first_fitting([*tried[:-1], tried[-1].exact()], memory)
    elif options.cast_once == "auto" and (cast_always := _cast_always(run)) is not None:
        run = _first_fitting([run, cast_always], memory) if memory is not None else run
    if options.swap_blocks == "auto":
        run = run.with_memory("", swap_blocks=0)
        run = run if memory is None or swap(run) is None else _swapping_few(run, memory)
    return run


def _first_fitting(tried: Sequence[Option], memory: float | None) -> Option:
    """The first whose training fits; the last one, which takes least, in any case: else no other is run."""
    if memory is None or needs(tried[-1].peak_of(WITH_MODEL)) > memory:
        return tried[-1]
    return next(run for run in tried if needs(run.peak_of(WITH_MODEL)) <= memory)


def _swapping_few(run: Option, memory: float, costs: str = "") -> Option:
    """With as few blocks in main memory as make it fit, or all."""
    numbers = [0, *range(BUFFERS + 1, sum(run.steps.num_blocks) + 1)]
    return _first_fitting([run.with_memory(costs, swap_blocks=number) for number in numbers], memory)


def ladder(run: Option) -> Iterator[Callable[[Option], Option | None]]:
    """Changes in the order in which to make them; each gives ``None`` where it does not apply.

    First what costs nothing, then time, then what the model can learn.
    """
    yield _mixed_precision
    yield _bfloat16_base
    yield _fused
    yield _tiled_decoding
    yield _tiled_encoding
    yield _single_samples
    yield _cast_always
    for share in SHARES:
        yield partial(_recompute, share)
    yield _small_moments
    for dtype in ("int8", "nf4"):
        yield partial(small_base, dtype)
    yield _tiled_decoding  # by now audits may be what takes most
    yield _tiled_encoding
    yield swap
    for _ in run.buckets[1:]:
        yield without_largest_bucket


def fit_to(run: Option, memory: float, changes: Iterable[Callable[[Option], Option | None]] | None = None) -> Option:
    """The run with as few changes as make it fit, or with all there are where it does not.

    Args:
        run: as it is.
        memory: bytes of the card.
        changes: to try, in order; ``None`` for all of :func:`ladder`.
    """
    best, lowest = run, run.peak
    for change in ladder(run) if changes is None else changes:
        if needs(lowest) <= memory and (not best.rules or needs(lowest := best.exact().peak) <= memory):
            break
        tried = change(best)
        if tried is not None and best.rules and not tried.rules:  # what was run is compared with what was run
            best = best.exact()
            lowest, tried = best.peak, change(best)
        if tried is not None and change is swap:
            tried = _swapping_few(best, memory, tried.costs["model.memory.swap_blocks"])
        if tried is not None and (peak := tried.peak) <= _WORTH * lowest:
            best, lowest = tried, peak
    return best.exact()


def single_changes(run: Option, phases: Sequence[str] = LOWERED, memory: float = 0.0) -> list[tuple[Option, float]]:
    """Each change by itself that lowers the memory, with the bytes that a card has to have then.

    Args:
        run: as it is.
        phases: that count.
        memory: bytes of a card; no more changes are looked for when a few fit it.
    """
    before, found = run.peak_of(phases), list[tuple[Option, float]]()
    for change in dict.fromkeys(ladder(run)):
        if sum(needed <= memory for _, needed in found) >= _ENOUGH:
            break
        tried = change(run)
        if tried is not None and (peak := tried.peak_of(phases)) <= _WORTH * before:
            found.append((tried, needs(peak)))
    return found


def beyond(run: Option, memory: float) -> list[tuple[str, float]]:
    """What would fit as well and is faster or steadier: its options in words, and the bytes it needs."""
    found = []
    if run.module.memory.gradient_checkpointing not in (False, 0):
        kept = run.with_memory("", gradient_checkpointing=False)
        if (needed := kept.needs) <= memory:
            found.append(("--model.memory.gradient_checkpointing false", needed))
    setting = replace(run.setting, batch_size=2 * run.setting.batch_size)
    twice = replace(run, setting=setting).by_rule(run, twice_the_samples)
    if (needed := twice.needs) <= memory:
        found.append((f"--data.batches.size {twice.setting.batch_size}", needed))
    return found


def _mixed_precision(run: Option) -> Option | None:
    if run.setting.precision != "32-true":
        return None
    setting = replace(run.setting, precision="bf16-mixed")
    return run.changed(
        "nothing, from the RTX 30 series on", {"trainer.precision": "bf16-mixed"}, setting=setting
    ).exact()


def _bfloat16_base(run: Option) -> Option | None:
    if run.module.adapter is None or run.module.memory.base_dtype != "float32":
        return None
    return run.with_memory("nothing to notice for a LoRA", base_dtype="bfloat16").exact()


def _tiled_decoding(run: Option) -> Option | None:
    if not run.setting.audits or run.module.memory.tiled_decoding is True or not _is_highest(run, AUDITS):
        return None
    return run.with_memory("seams that show a little in audits", tiled_decoding=True)


def _tiled_encoding(run: Option) -> Option | None:
    if run.setting.tiled or not _is_highest(run, CLIPS):
        return None
    setting = replace(run.setting, tiled=True)
    return run.changed("clips encoded anew, a little else", {"data.encoding.tiled": True}, setting=setting)


def _is_highest(run: Option, phase: str) -> bool:
    """Whether a phase alone takes most: only then a change to it alone is worth its cost, and is tried."""
    return run.peak_of([name for name in LOWERED if name != phase]) <= _WORTH * run.peak_of([phase])


def _cast_always(run: Option) -> Option | None:
    trains_whole = run.module.adapter is None and run.setting.shards == 1 and run.setting.precision == "bf16-mixed"
    if not trains_whole or run.module.memory.cast_once is False:
        return None
    return run.with_memory("a few percent of time", cast_once=False).by_rule(run, always_cast)


def _fused(run: Option) -> Option | None:
    made = _probe(run.module)
    if made.defaults.get("fused") or made.defaults.get("foreach") is False or "fused" not in made.defaults:
        return None
    module = copy.copy(run.module)
    module.optimizer = partial(_make_fused, run.module.optimizer)
    return run.changed("nothing: it is faster", {"model.optimizer.init_args.fused": True}, module=module).by_rule(
        run, without_temporaries
    )


def _single_samples(run: Option) -> Option | None:
    size = run.setting.batch_size
    if size == 1:
        return None
    accumulate = run.setting.accumulate * size
    setting = replace(run.setting, batch_size=1, val_batch_size=1, accumulate=accumulate)
    options = {"data.batches.size": 1, "trainer.accumulate_grad_batches": accumulate}
    return run.changed("little: the steps are the same", options, setting=setting).exact()


def _recompute(share: float, run: Option) -> Option | None:
    before = run.module.memory.gradient_checkpointing
    if before == "auto" or (before if isinstance(before, float) else bool(before)) >= share:
        return None
    costs = f"up to {33 * share:.0f} % more time"
    return run.with_memory(costs, gradient_checkpointing=True if share == 1 else share)


def _small_moments(run: Option) -> Option | None:
    made = _probe(run.module)
    if run.module.adapter is not None or type(made).__name__ != "AdamW":
        return None
    module = copy.copy(run.module)
    module.optimizer = _adamw_8bit
    named = {"class_path": _EIGHT_BITS, **{f"init_args.{name}": made.defaults[name] for name in ("lr", "weight_decay")}}
    options = {f"model.optimizer.{name}": value for name, value in named.items()}
    return run.changed("some precision of the moments; needs torchao", options, module=module).by_rule(
        run, moments_in_8_bits
    )


def small_base(dtype: str, run: Option) -> Option | None:
    """With frozen weights in few bits; ``None`` where there are none, or they are."""
    if run.module.adapter is None or run.module.memory.base_dtype == dtype or dtype not in get_args(FrozenDtype):
        return None
    # What products in few bits keep is up to torchao: no rule of ours.
    return run.with_memory("time to dequantise, some precision; needs torchao", base_dtype=dtype).exact()


def swap(run: Option) -> Option | None:
    """With the frozen weights of all blocks in main memory; ``None`` where that does not go."""
    blocks = sum(run.steps.num_blocks)
    if run.module.adapter is None or run.setting.shards > 1 or blocks <= BUFFERS:
        return None
    return run.with_memory("copying of weights at every step", swap_blocks=blocks)


def without_largest_bucket(run: Option) -> Option | None:
    """Without the clips that take most; ``None`` where there are no others."""
    others = [bucket for bucket in run.buckets if math.prod(bucket) < math.prod(run.setting.bucket)]
    if not others:
        return None
    bucket = max(others, key=math.prod)
    setting = replace(run.setting, bucket=bucket)
    options = {"data.buckets": [str(bucket) for bucket in others]}
    return run.changed("what longer or larger clips would teach", options, setting=setting, buckets=others).exact()


def _adamw_8bit(parameters: Any) -> Any:
    from torchao.optim import AdamW8bit

    return AdamW8bit(parameters)


def _make_fused(make: Any, parameters: Any) -> Any:
    made = make(parameters)
    for group in made.param_groups:
        group["fused"] = True
    return made


def _probe(module: VideoDiffusionModule) -> Any:
    """The module's optimizer, over nothing of its own."""
    import torch

    return module.optimizer([("probe", torch.nn.Parameter(torch.zeros(1, 1)))])
