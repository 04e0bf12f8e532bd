"""Trained weights cast to bfloat16 once a step, where autocast does it at every use."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.precision import lowers


def cast_once(transformer: nn.Module) -> None:
    """Let linear layers of the blocks read bfloat16 copies of their weights under autocast, in place.

    Autocast casts a weight when it is used, and once more where its block is recomputed, in each of the batches that a
    step accumulates. Here the copies are made in the first of these. Losses and gradients are the same to the bit. It
    costs 2 bytes a weight, which autocast holds as well where nothing is recomputed. What is saved of the weights, and
    by which names, stays.

    Args:
        transformer: whose weights are trained, in float32; not sharded: shards are gathered in bfloat16 anyway.
    """
    layers = []
    for block in repeated_blocks(transformer):
        for module in block.modules():
            if type(module) is nn.Linear and module.weight.requires_grad and module.weight.dtype == torch.float32:
                module.__class__ = _CastLinear
                vars(module)["low"] = None
                layers.append(module)
    if layers:
        transformer.register_forward_pre_hook(_Casts(layers))


class _CastLinear(nn.Linear):
    """A linear layer that multiplies by a copy of its weight under autocast, and else by the weight itself."""

    low: Tensor | None

    def forward(self, input: Tensor) -> Tensor:
        """As the parent's."""
        if self.low is None or not lowers(input.device.type):
            return super().forward(input)
        stand_in: Any = _StandIn
        return nn.functional.linear(input, stand_in.apply(self.weight, self.low), self.bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Leave the copy behind when the weight moves."""
        self.low = None
        parent: Any = super()
        parent._apply(fn, recurse)
        return self


class _StandIn(torch.autograd.Function):
    """Gives the copy of a weight, and its gradient to the weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, low: Tensor) -> Tensor:
        """The copy, as a function of the weight."""
        return low.view_as(low)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """As that of a cast."""
        return gradient.float(), None


class _Casts:
    """Makes all copies before a transformer is called, but where no optimizer has made a step since it was trained on.

    Whatever else changes weights, as an average that is put in their place, does so around passes without gradients.
    These make copies of their own, and so does the next one with gradients.
    """

    def __init__(self, layers: list[Any]) -> None:
        self._layers = layers
        self._steps = _optimizer_steps()
        self._made_at: int | None = None

    def __call__(self, transformer: nn.Module, inputs: Any) -> None:
        if not lowers(self._layers[0].weight.device.type):
            return
        trains, missing = torch.is_grad_enabled(), [layer for layer in self._layers if layer.low is None]
        for layer in missing:
            layer.low = torch.empty_like(layer.weight, dtype=torch.bfloat16)
        if missing or not trains or self._made_at != self._steps[0]:
            # Through `data`: for autograd, which may hold a copy for a backward pass yet to come, it is the same.
            copies, weights = zip(*((layer.low.data, layer.weight.data) for layer in self._layers), strict=True)
            torch._foreach_copy_(copies, weights)
        self._made_at = self._steps[0] if trains else None


@cache
def _optimizer_steps() -> list[int]:
    """The number of steps that optimizers of this process have made, counted in place: fused ones leave no trace."""
    steps = [0]

    def count(*_: Any) -> None:
        steps[0] += 1

    register_optimizer_step_post_hook(count)
    return steps
