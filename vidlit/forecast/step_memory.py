"""Memory of training steps, measured without weights: the real Trainer, module and optimizer on fake tensors.

A fake tensor (``torch._subclasses``) has shape, dtype and storage, and nothing in it. So Lightning runs two steps of
the module as it is, forward and backward pass, clipping and optimizer, in seconds on a CPU, whatever the model's size;
autograd keeps what it keeps on a GPU, attention its output and log-sum-exp as fused kernels do.

A transformer is many equal blocks. Steps are run with a few of them, and the memory of every stage of a step grows
linearly from there: of each stage the parts that lie in the first blocks and in the last ones are looked at apart, for
between them it grows or falls evenly.
"""

from __future__ import annotations

import copy
import gc
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vidlit.forecast.cuda_autocast import cuda_autocast
from vidlit.forecast.sample_shapes import sample_batch
from vidlit.forecast.stand_in_optimizer import stand_in
from vidlit.forecast.tensor_memory import (
    ACTIVATIONS,
    AVERAGES,
    FROZEN,
    GRADIENTS,
    MOMENTS,
    TEMPORARIES,
    TRAINED,
    Held,
    TensorMemory,
)
from vidlit.latents.quiet_lightning import BARE_TRAINER, quiet_lightning
from vidlit.lightning_internals import detach
from vidlit.models.without_weights import without_weights
from vidlit.training.blocks.repeated import FEW, lists_of_blocks, shorten
from vidlit.training.expert_weights import ExpertWeights
from vidlit.training.precision import precision_and_plugins
from vidlit.training.step.numbers import StepNumbers
from vidlit.training.step.objective import check_losses

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning, LatentBatch
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket

Prepare = Callable[[nn.Module], Any]
_STEPS = 2
"""Moments are there from the second step on."""
CHECK, OPTIMIZER = "check", "optimizer"
"""Stages: after the last step, and at the end of each."""


@dataclass(frozen=True)
class StepSetting:
    """What the memory of a step depends on beside the module.

    Args:
        bucket: of the clips.
        batch_size: samples of a micro-batch on one rank.
        val_batch_size: of a validation batch.
        precision: ``trainer.precision``.
        accumulate: micro-batches of a step.
        clip_val: ``trainer.gradient_clip_val``.
        on_gpu: the optimizer takes all tensors at once (``foreach``) where it is not told otherwise, as on a GPU.
        with_std: latents are drawn anew at each visit.
    """

    bucket: Bucket
    batch_size: int = 1
    val_batch_size: int = 1
    precision: str = "bf16-mixed"
    accumulate: int = 1
    clip_val: float | None = None
    on_gpu: bool = True
    with_std: bool = False


@dataclass(frozen=True)
class StepMemory:
    """What was held at the peak of each stage of a step.

    Args:
        peaks: by stage.
        block: what one block of each list of blocks adds to the weights, by kind.
        num_blocks: of each list.
    """

    peaks: Mapping[str, Held]
    block: Sequence[Held]
    num_blocks: Sequence[int]

    def changed(self, change: Any) -> StepMemory:
        """With every peak as a function makes it."""
        return replace(self, peaks={stage: change(held) for stage, held in self.peaks.items()})


def step_memory(
    module: VideoDiffusionModule, setting: StepSetting, *, whole: bool = False, prepare: Prepare = lambda model: None
) -> StepMemory:
    """Memory of a module's training steps, a check and a call of the sampler.

    Args:
        module: whose weights are not loaded; it stays as it is. What it names about its memory is taken as it stands,
            but for what is not run here: compilation.
        setting: of the run.
        whole: run all blocks, whatever their number.
        prepare: changes the transformer, before it is put to use.

    Raises:
        CannotRunError: the model cannot be run without values.
    """
    period = _period(module.memory.gradient_checkpointing)
    if whole or not blocks_are_alike(module) or period is None:
        run = _run(module, setting, {}, period or 1, prepare)
        return StepMemory(run.peaks, [], run.num_blocks)
    few = FEW * period
    base = _run(module, setting, dict.fromkeys(range(99), few), period, prepare)
    peaks, block = dict(base.peaks), []
    for number, there in enumerate(base.num_blocks):
        if there <= few:
            block.append(Held())
            continue
        more = _run(module, setting, dict.fromkeys(range(99), few) | {number: few + period}, period, prepare)
        times = (there - few) / period
        for stage, held in base.peaks.items():
            peaks[stage] = peaks[stage].plus(more.peaks[stage].plus(held, -1), times)
        block.append(Held({kind: (more.held.of(kind) - base.held.of(kind)) / period for kind in (FROZEN, TRAINED)}))
    return StepMemory(peaks, block, base.num_blocks)


def blocks_are_alike(module: VideoDiffusionModule) -> bool:
    """Whether training does the same in all blocks: chosen layers may lie in some and not in others."""
    return module.layers is None and getattr(module.adapter, "targets", None) is None


class CannotRunError(Exception):
    """A model's memory cannot be measured without values; says why."""


@dataclass(frozen=True)
class _Run:
    peaks: dict[str, Held]
    held: Held
    """after the model was made"""
    num_blocks: list[int]
    """of each list, as the base has them"""


def _run(
    module: VideoDiffusionModule, setting: StepSetting, blocks: Mapping[int, int], period: int, prepare: Prepare
) -> _Run:
    """Steps with the first blocks, and the last one, of each of the transformer's lists.

    Args:
        module: whose weights are not loaded.
        setting: of the run.
        blocks: how many to leave of each list, by its number.
        period: blocks of which the first and the last ones are looked at apart.
        prepare: changes the transformer.
    """
    memory, num_blocks = TensorMemory(), list[int]()

    def with_few(transformer: nn.Module) -> None:
        lists = lists_of_blocks(transformer)
        num_blocks[:] = map(len, lists.values())
        shorten(transformer, lists, blocks)
        prepare(transformer)

    with without_values(memory), without_weights(with_few):
        empty = unloaded_copy(module, setting)
        try:
            held = run_steps(empty, setting, memory, period, whole_steps=False)
        except Exception as error:  # models fail on tensors without values in ways of their own: no run ends by that
            raise CannotRunError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    factor = getattr(empty, "state_factor", 1.0) * len(empty.expert_names)
    return _Run({stage: peak.scaled({MOMENTS: factor}) for stage, peak in memory.peaks.items()}, held, num_blocks)


def run_steps(
    module: VideoDiffusionModule, setting: StepSetting, memory: TensorMemory, period: int = 1, whole_steps: bool = True
) -> Held:
    """Two steps of a module under Lightning's Trainer, of real tensors or fake ones, and a check.

    Args:
        module: to be trained.
        setting: of the run.
        memory: open; its stages are named as steps go on.
        period: blocks of which the first and the last ones are looked at apart.
        whole_steps: run all of them; else the last micro-batch alone, in which most is held, beside what those before
            it leave: moments, and gradients where there are several to a step.

    Returns:
        What the model holds by itself.
    """
    batch = sample_batch(module.family, setting.bucket, setting.batch_size, with_std=setting.with_std)
    checked = sample_batch(module.family, setting.bucket, setting.val_batch_size)
    memory.name([batch.latents, checked.latents], ACTIVATIONS)
    stages = _Stages(memory, period, checked)
    steps, accumulate = (_STEPS, min(setting.accumulate, 2)) if whole_steps else (1, 1)
    callbacks: list[Callback] = [stages] if whole_steps else [stages, _LaterStep(memory, setting.accumulate > 1)]
    with quiet_lightning(), tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            **precision_and_plugins(setting.precision, [LightningEnvironment()]),
            max_steps=steps,
            accumulate_grad_batches=accumulate,
            gradient_clip_val=setting.clip_val,
            limit_val_batches=0,
            callbacks=callbacks,
            default_root_dir=folder,
            **BARE_TRAINER,
        )
        trainer.fit(module, _Batches([batch] * (steps * accumulate)))
    return stages.held


@contextmanager
def without_values(memory: TensorMemory) -> Iterator[None]:
    """All tensors that are made while it is open are fake ones of the CPU, counted, with the dtypes of a GPU."""
    gc.freeze()  # what is there already is not looked through again and again
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), memory, cuda_autocast():
            yield
    finally:
        gc.unfreeze()


def unloaded_copy(module: VideoDiffusionModule, setting: StepSetting) -> VideoDiffusionModule:
    """A copy of a module that can be trained on fake tensors beside it, with an optimizer that can be, too."""
    empty: VideoDiffusionModule = _copied(module)
    detach(empty)
    empty.family = _copied(module.family)
    # Compiling and swapping are reckoned by rule; the rest is chosen as where it will run, not as on this CPU.
    asked = module.memory.settled(torch.device("cuda" if setting.on_gpu else "cpu"))
    empty.memory = replace(asked, compile=False, swap_blocks=0)
    for name in empty.expert_names:
        setattr(empty, name, None)
    empty.context_parallel = 1
    empty.num_strata = 1  # further ones are scored one after the other
    empty.averaged, empty.numbers = None, StepNumbers()
    empty.experts = ExpertWeights(empty)
    replaced: Any = empty  # a copy takes methods of its own
    replaced.prompt = partial(_prompt, module, setting.bucket)
    if replaced.preservation is not None:  # a step with it takes most, and a draw without values does not tell of one
        replaced.preservation = _copied(replaced.preservation)
        replaced.preservation.draw = lambda seed, position, rows: [""] * len(rows)
    replaced.log = replaced.log_dict = lambda *_, **__: None
    empty.optimizer = partial(stand_in, module.optimizer, empty, setting.on_gpu)
    return empty


def _copied(thing: Any) -> Any:
    """A copy that fills collections of its own: with transformers, or with what a family remembers."""
    made = copy.copy(thing)
    kept = {name: copy.copy(value) for name, value in vars(thing).items() if isinstance(value, dict | list | set)}
    made.__dict__.update(kept)
    return made


def _prompt(module: VideoDiffusionModule, bucket: Bucket, caption: str) -> Conditioning:
    found = sample_batch(module.family, bucket, 1).conditioning
    return found._replace(extras={name: found.extras[name] for name in module.family.prompt_extras})


def _period(share: Any) -> int | None:
    """After how many blocks the pattern of recomputed ones repeats; ``None`` where that is not soon."""
    if share in (True, False, "auto"):
        return 1
    period = int(share) if float(share).is_integer() else round(1 / min(share, 1 - share))
    return period if period <= 4 else None


class _Batches:
    """What the Trainer takes for a loader."""

    def __init__(self, batches: Sequence[LatentBatch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[LatentBatch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Stages(Callback):
    """Tells a :class:`TensorMemory` where a step is, and what tensors are for."""

    def __init__(self, memory: TensorMemory, period: int, checked: LatentBatch) -> None:
        self.memory, self.period, self.checked = memory, period, checked
        self.held = Held()
        self._step = ""
        self._forward = False

    def on_fit_start(self, trainer: Trainer, pl_module: Any) -> None:
        """The model is made."""
        parameters = list(pl_module.parameters())
        self.memory.name([p for p in parameters if not p.requires_grad], FROZEN)
        self.memory.name([p for p in parameters if p.requires_grad], TRAINED)
        if pl_module.averaged is not None:
            self.memory.name(pl_module.averaged.buffers(), AVERAGES)
        if pl_module.memory.offload_experts:  # steps are of the last one; the others wait in main memory
            waiting = list(pl_module.transformers.values())[:-1]
            self.memory.leave_out([p for each in waiting for p in each.parameters()])
        self.held = self.memory.now
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: self.memory.name([p.grad], GRADIENTS))
        for transformer in pl_module.transformers.values():
            for blocks in [child for child in transformer.children() if isinstance(child, nn.ModuleList)]:
                for number, block in enumerate(blocks):
                    place = self._place(number, len(blocks))
                    block.register_forward_pre_hook(partial(self._entered, place))
                    block.register_forward_hook(partial(self._left, place))

    def _place(self, number: int, count: int) -> str:
        first, last = number < self.period, number >= count - self.period
        return "first" if first else "last" if last else "middle"

    def _entered(self, place: str, *_: Any) -> None:
        if self._forward:
            self.memory.enter(f"{self._step} forward {place}")

    def _left(self, place: str, block: Any, given: Any, made: Any) -> None:
        if self._forward:
            made = made if isinstance(made, Tensor) else next(each for each in made if isinstance(each, Tensor))
            if made.requires_grad:
                made.register_hook(lambda _: self.memory.enter(f"{self._step} backward {place}"))

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """The forward pass begins."""
        self._step, self._forward = f"batch {batch_idx}", True
        self.memory.enter(f"{self._step} forward before", ACTIVATIONS)

    def on_before_backward(self, *_: Any) -> None:
        """The backward pass begins."""
        self._forward = False
        self.memory.enter(f"{self._step} backward before", TEMPORARIES)

    def on_after_backward(self, trainer: Trainer, pl_module: Any) -> None:
        """Gradients are there: finite ones."""
        self.memory.answer = True
        self.memory.enter(f"{self._step} {OPTIMIZER}")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        """The step is done."""
        self.memory.answer = False
        _name_moments(trainer, self.memory)

    @torch.no_grad()
    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """A check, and a call of the sampler's: one sample."""
        pl_module.eval()
        pl_module.zero_grad()
        with trainer.precision_plugin.val_step_context():
            self.memory.enter(CHECK, ACTIVATIONS)
            if pl_module.averaged is not None:  # validation holds the trained weights, too, while averages are in
                copies = [parameter.clone() for parameter in pl_module.averaged.trained()]
                self.memory.name(copies, AVERAGES)
            check_losses(pl_module, self.checked)


class _LaterStep(Callback):
    """Lets training begin as if steps had been made."""

    def __init__(self, memory: TensorMemory, accumulates: bool) -> None:
        self.memory, self.accumulates = memory, accumulates

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Make moments, and gradients where micro-batches add to those of others."""
        self._make_gradients(pl_module)
        pl_module.optimizer_step(0, 0, trainer.optimizers[0], lambda: None)
        _name_moments(trainer, self.memory)
        if self.accumulates:
            self._make_gradients(pl_module)
            pl_module.optimizer_zero_grad = lambda *_: None  # which a later micro-batch of a step does not call

    def _make_gradients(self, pl_module: Any) -> None:
        expert = pl_module.parts.of_step(0, pl_module.noising)[0].expert  # steps are of one alone
        trained = [each for each in pl_module.transformers[expert].parameters() if each.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        self.memory.name([parameter.grad for parameter in trained], GRADIENTS)


def _name_moments(trainer: Trainer, memory: TensorMemory) -> None:
    states = [value for each in trainer.optimizers for state in each.state.values() for value in state.values()]
    memory.name([value for value in states if isinstance(value, Tensor)], MOMENTS)
