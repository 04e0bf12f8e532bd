"""What is made of the optimizer and schedule that a config names, and Muon with AdamW as one optimizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

IN_A_BLOCK = re.compile(r"\.\d+\.")


class MuonAdamW(Optimizer):
    """Muon (https://arxiv.org/abs/2502.16982) for the matrices inside the transformer's blocks, AdamW for the rest.

    Muon makes every direction of a matrix's update equally long, which means nothing for biases, norms and scales, and
    harms embeddings and the first and last projections (https://kellerjordan.github.io/posts/muon/). Its updates are
    scaled to AdamW's usual size, so that one learning rate serves both.

    Args:
        params: trained parameters with their names, which say what lies inside a block; without names every matrix
            counts as inside.
        lr: learning rate of both.
        weight_decay: decoupled weight decay of both.
        momentum: momentum of Muon.
        betas: betas of AdamW.
        eps: epsilon of AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        named: list[tuple[str, Tensor]] = [p if isinstance(p, tuple) else (".0.", p) for p in params]
        matrices = [pair for pair in named if pair[1].ndim == 2 and IN_A_BLOCK.search(pair[0])]
        chosen = {id(parameter) for _, parameter in matrices}
        rest = [pair for pair in named if id(pair[1]) not in chosen]
        self._parts: list[Optimizer] = []
        if matrices:
            self._parts.append(Muon(matrices, lr, weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"))
        if rest:
            self._parts.append(AdamW(rest, lr, (betas[0], betas[1]), eps, weight_decay))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the two see this optimizer's groups and state, which schedules change and checkpoints replace."""
        first = 0
        for part in self._parts:
            last = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:last], self.state
            first = last

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's."""
        super().load_state_dict(state_dict)
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def is_schedule_free(optimizer: Callable[[Any], Optimizer]) -> bool:
    """Does this make a schedule-free optimizer (https://arxiv.org/abs/2405.15682), which averages by itself?"""
    made = optimizer([torch.nn.Parameter(torch.zeros(1, 1))])
    return all("train_mode" in group for group in made.param_groups)


def with_warmup(optimizer: Optimizer, warmup_steps: int, schedule: Callable[[Optimizer], Any] | None) -> Any | None:
    """A linear warm-up, then the schedule; ``None`` for a constant rate.

    Args:
        optimizer: whose rates are set.
        warmup_steps: over which they rise; 0 for none.
        schedule: makes what follows; ``None`` for a constant rate.
    """
    schedules: list[Any] = []
    if warmup_steps > 0:
        first, last = 1 / warmup_steps, warmup_steps - 1
        schedules.append(torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=first, total_iters=last))
    if schedule is not None:
        schedules.append(schedule(optimizer))
    if len(schedules) == 2:
        return torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones=[warmup_steps])
    return schedules[0] if schedules else None


def release(trainer: Trainer) -> None:
    """Let go of a Trainer's optimizers, whose moments Lightning's teardown would copy to main memory."""
    trainer.strategy.optimizers, trainer.strategy.lr_scheduler_configs = [], []


def unscale(trainer: Trainer, optimizer: Any) -> bool:
    """Undo the scale of float16's gradients before they are clipped, which Lightning leaves to fused optimizers.

    Returns:
        Whether gradients are scaled at all.
    """
    scaler: Any = getattr(trainer.precision_plugin, "scaler", None)
    own = plain(optimizer)  # torch keeps count by object
    if scaler is not None and getattr(own, "_step_supports_amp_scaling", False):
        scaler.unscale_(own)
    return scaler is not None


def plain(optimizer: Any) -> Any:
    """The optimizer itself, without what Lightning wraps around it."""
    return getattr(optimizer, "optimizer", optimizer)


@contextmanager
def set_aside(trainer: Trainer) -> Iterator[None]:
    """While it is open, a Trainer has no optimizers: what is saved then holds no moments."""
    optimizers, trainer.strategy.optimizers = trainer.strategy.optimizers, []
    try:
        yield
    finally:
        trainer.strategy.optimizers = optimizers


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The numbers of each group of parameters, as an optimizer that was just made has them."""
    return [
        {name: value for name, value in group.items() if name not in _NO_NUMBERS} for group in optimizer.param_groups
    ]


_NO_NUMBERS = ("params", "param_names", "initial_lr")


def apply_changes(
    optimizer: Optimizer, schedules: Sequence[Any], before: list[dict[str, Any]], asked: list[dict[str, Any]]
) -> None:
    """Bring what was restored from a checkpoint to other numbers: a restored optimizer has those of the checkpoint.

    A learning rate is scaled, and with it what its schedules start from, so that a schedule goes on where it was.

    Args:
        optimizer: restored.
        schedules: restored learning-rate schedules.
        before: :func:`hyperparameters` of the optimizer that the checkpoint is of.
        asked: those of this one, when it was made.
    """
    for group, had, wanted in zip(optimizer.param_groups, before, asked, strict=True):
        changed = {name: value for name, value in wanted.items() if name in had and had[name] != value}
        if "lr" in changed:
            rate = changed.pop("lr")
            scale = rate / had["lr"] if had["lr"] else 0.0
            group["lr"] = group["lr"] * scale if scale else rate
            if "initial_lr" in group:
                group["initial_lr"] = rate
        group.update(changed)
    for schedule in schedules:
        _set_base_rates(schedule, [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups])


def _set_base_rates(schedule: Any, rates: list[float]) -> None:
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = list(rates)
    for part in getattr(schedule, "_schedulers", ()):  # SequentialLR and ChainedScheduler show theirs to nobody
        _set_base_rates(part, rates)
