"""What makes a run fit a card, in the order of what it costs in time; and what a card could hold beyond it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Self, get_args

from vidlit.forecast.memory_forecast import (
    AUDITS,
    CHECKS,
    CLIPS,
    TRAINING,
    RunSetting,
    adjusted,
    mixed,
    needs,
    training_peak,
)
from vidlit.forecast.phases import decode_clips, encode_clips
from vidlit.forecast.step_memory import CHECK, CannotRunError, StepMemory, step_memory
from vidlit.forecast.tensor_memory import ACTIVATIONS, TEMPORARIES
from vidlit.training.blocks.kept_dtypes import FrozenDtype

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Of the blocks, those that may be recomputed."""
_WORTH = 0.98
"""A change that leaves more than this share of the memory is not worth its cost."""
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
    """

    module: VideoDiffusionModule
    setting: RunSetting
    buckets: Sequence[Bucket]
    options: Mapping[str, Any] = field(default_factory=dict)
    costs: Mapping[str, str] = field(default_factory=dict)

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
        """Bytes of the phases that a change may lower, by name.

        Raises:
            CannotRunError: the model cannot be run without values.
        """
        steps = adjusted(self.steps, self.module, self.setting)
        resident = steps.peaks[CHECK].without(ACTIVATIONS, TEMPORARIES).total
        found = {
            CLIPS: _seldom(encode_clips, self.module.family, self.setting.bucket),
            TRAINING: training_peak(steps).total,
            CHECKS: steps.peaks[CHECK].total,
        }
        if self.setting.audits:
            found[AUDITS] = resident + _seldom(decode_clips, self.module.family, self.setting.bucket)
        return found

    def peak_of(self, phases: Sequence[str] = ()) -> float:
        """Bytes of the phase that takes most, of some; of all where none is named."""
        return max(size for name, size in self.peaks().items() if name in phases or not phases)

    @property
    def peak(self) -> float:
        """Bytes of the phase that takes most."""
        return self.peak_of()

    @property
    def needs(self) -> float:
        """Bytes that a card has to have."""
        return needs(self.peak)

    @cached_property
    def steps(self) -> StepMemory:
        """Of its training, before what is reckoned by rule."""
        share = self.module.memory.gradient_checkpointing
        if isinstance(share, float) and 0 < share < 1:
            none, every = (self._steps(recomputed) for recomputed in (False, True))
            return mixed(none, every, share)
        return self._steps(share)

    def _steps(self, recomputed: Any) -> StepMemory:
        module = copy.copy(self.module)
        module.memory = replace(module.memory, gradient_checkpointing=recomputed)
        # What rules see to is not part of what is measured.
        measured = replace(self.setting, shards=1, processes=1, audits=True)
        plain = replace(module.memory, compile=False, swap_blocks=0)
        key = (id(module.family), plain, measured, module.optimizer, module.adapter)
        if key not in _STEPS:
            _STEPS[key] = step_memory(module, measured)
        return _STEPS[key]


_STEPS: dict[Any, StepMemory] = {}
_PHASES: dict[Any, float] = {}


def _seldom(measure: Callable[..., Any], family: Any, bucket: Bucket) -> float:
    """Measured once; 0 where it cannot be, so that it stands in no way."""
    key = (measure, id(family), bucket)
    if key not in _PHASES:
        try:
            _PHASES[key] = measure(family, bucket).total
        except CannotRunError:
            _PHASES[key] = 0.0
    return _PHASES[key]


def resolved(run: Option, memory: float | None) -> Option:
    """A run whose memory is to be chosen by itself (``auto``), with what was chosen.

    Args:
        run: as it is asked for.
        memory: bytes of the card; ``None`` where there is none to choose by: everything is recomputed then.
    """
    options: Any = run.module.memory
    if options.gradient_checkpointing == "auto":
        shares = [False, *SHARES[:-1], True] if memory is not None else [True]
        run = next(_fitting(run, memory, [{"gradient_checkpointing": share} for share in shares]))
    if options.swap_blocks == "auto":
        every = sum(replace_swap(run, 0).steps.num_blocks) if memory is not None else 0
        run = next(_fitting(run, memory, [{"swap_blocks": number} for number in range(every + 1)]))
    return run


def replace_swap(run: Option, blocks: int) -> Option:
    """With so many blocks in main memory."""
    return run.with_memory("", swap_blocks=blocks)


def _fitting(run: Option, memory: float | None, choices: Sequence[Mapping[str, Any]]) -> Iterator[Option]:
    """Those of some options of ``model.memory`` that fit; the last one in any case."""
    for choice in choices:
        tried = run.with_memory("", **choice)
        if choice is choices[-1] or memory is None or tried.needs <= memory:
            yield tried


def ladder(run: Option) -> Iterator[Callable[[Option], Option | None]]:
    """Changes in the order in which to make them; each gives ``None`` where it does not apply.

    First what costs nothing, then time, then what the model can learn.
    """
    yield _mixed_precision
    yield _bfloat16_base
    yield _fused
    yield _single_samples
    for share in SHARES:
        yield partial(_recompute, share)
    yield _small_moments
    for dtype in ("int8", "nf4"):
        yield partial(_small_base, dtype)
    yield _swap
    for _ in run.buckets[1:]:
        yield _without_largest_bucket


def fit_to(run: Option, memory: float) -> Option:
    """The run with as few changes as make it fit, or with all there are where it does not.

    Args:
        run: as it is.
        memory: bytes of the card.
    """
    best, lowest = run, run.peak
    for change in ladder(run):
        if needs(lowest) <= memory:
            break
        tried = change(best)
        if tried is not None and (peak := tried.peak) <= _WORTH * lowest:
            best, lowest = tried, peak
    return best


def single_changes(run: Option, phases: Sequence[str] = ()) -> list[tuple[Option, float]]:
    """Each change by itself that lowers the memory, with the bytes that a card has to have then.

    Args:
        run: as it is.
        phases: that count; all of them where none is named.
    """
    before, found = run.peak_of(phases), []
    for change in dict.fromkeys(ladder(run)):
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
    twice = replace(run, setting=replace(run.setting, batch_size=2 * run.setting.batch_size))
    if (needed := twice.needs) <= memory:
        found.append((f"--data.batches.size {twice.setting.batch_size}", needed))
    return found


def _mixed_precision(run: Option) -> Option | None:
    if run.setting.precision != "32-true":
        return None
    setting = replace(run.setting, precision="bf16-mixed")
    return run.changed("nothing, from the RTX 30 series on", {"trainer.precision": "bf16-mixed"}, setting=setting)


def _bfloat16_base(run: Option) -> Option | None:
    if run.module.adapter is None or run.module.memory.base_dtype != "float32":
        return None
    return run.with_memory("nothing to notice for a LoRA", base_dtype="bfloat16")


def _fused(run: Option) -> Option | None:
    made = _probe(run.module)
    if made.defaults.get("fused") or made.defaults.get("foreach") is False or "fused" not in made.defaults:
        return None
    module = copy.copy(run.module)
    module.optimizer = partial(_make_fused, run.module.optimizer)
    return run.changed("nothing: it is faster", {"model.optimizer.init_args.fused": True}, module=module)


def _single_samples(run: Option) -> Option | None:
    size = run.setting.batch_size
    if size == 1:
        return None
    accumulate = run.setting.accumulate * size
    setting = replace(run.setting, batch_size=1, val_batch_size=1, accumulate=accumulate)
    options = {"data.batches.size": 1, "trainer.accumulate_grad_batches": accumulate}
    return run.changed("little: the steps are the same", options, setting=setting)


def _recompute(share: float, run: Option) -> Option | None:
    before = run.module.memory.gradient_checkpointing
    if before == "auto" or (before if isinstance(before, float) else bool(before)) >= share:
        return None
    costs = f"up to {33 * share:.0f} % more time"
    return run.with_memory(costs, gradient_checkpointing=True if share == 1 else share)


def _small_moments(run: Option) -> Option | None:
    made = _probe(run.module)
    if run.module.adapter is not None or type(made).__name__ not in ("AdamW", "Adam"):
        return None
    module = copy.copy(run.module)
    module.optimizer = _EightBits()
    options = {"model.optimizer.class_path": _EIGHT_BITS}
    rate = {"model.optimizer.init_args": {"lr": made.defaults["lr"], "weight_decay": made.defaults["weight_decay"]}}
    return run.changed("some precision of the moments; needs torchao", options | rate, module=module)


def _small_base(dtype: str, run: Option) -> Option | None:
    if run.module.adapter is None or run.module.memory.base_dtype == dtype or dtype not in get_args(FrozenDtype):
        return None
    return run.with_memory("time to dequantise, some precision; needs torchao", base_dtype=dtype)


def _swap(run: Option) -> Option | None:
    if run.module.adapter is None:
        return None
    blocks = sum(run.steps.num_blocks)
    return run.with_memory("copying of weights at every step", swap_blocks=max(0, blocks - 2))


def _without_largest_bucket(run: Option) -> Option | None:
    others = [bucket for bucket in run.buckets if math.prod(bucket) < math.prod(run.setting.bucket)]
    if not others:
        return None
    setting = replace(run.setting, bucket=max(others, key=math.prod))
    options = {"data.buckets": [str(bucket) for bucket in others]}
    return run.changed("what longer or larger clips would teach", options, setting=setting, buckets=others)


class _EightBits:
    """Makes AdamW in 8 bits; alike to any other of its kind."""

    def __call__(self, parameters: Any) -> Any:
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
