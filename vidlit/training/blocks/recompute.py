"""Activations that are computed again in the backward pass instead of kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from vidlit.training.blocks.repeated import repeated_blocks


def checkpoint_blocks(transformer: nn.Module, every: int) -> None:
    """Recompute the activations of every ``every``-th block in the backward pass, through diffusers' own switch.

    Args:
        transformer: a diffusers model.
        every: 1 recomputes all blocks, 2 every other one ...
    """
    chosen = {id(block) for number, block in enumerate(repeated_blocks(transformer)) if number % every == 0}

    def run(block: Callable[..., Any], *inputs: Any) -> Any:
        return checkpoint(block, *inputs, use_reentrant=False) if id(block) in chosen else block(*inputs)

    transformer.enable_gradient_checkpointing(run)  # type: ignore[operator]  # diffusers' method
