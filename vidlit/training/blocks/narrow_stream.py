"""What goes from block to block, in autocast's dtype."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from vidlit.training.blocks.cast_once import lowers
from vidlit.training.blocks.repeated import repeated_blocks


def narrow_stream(transformer: nn.Module) -> None:
    """Let the blocks give bfloat16 where autocast multiplies in it, in place.

    LTX-Video, LTX-2 and the prompt's stream of HunyuanVideo 1.5 scale what they add by a table of their own. Where that
    is trained in float32 it makes all that goes from block to block float32, twice the bytes to read, write and keep.
    In pipelines, over a base in bfloat16 and with shards it is bfloat16, and other families cast it themselves.

    Args:
        transformer: whose blocks are neither recomputed nor compiled yet.
    """
    for block in repeated_blocks(transformer):
        block_class: Any = type(block)
        block.__class__ = _narrowing(block_class)


@cache
def _narrowing(block_class: Any) -> Any:
    """The same class, which gives no float32 under autocast."""

    def forward(block: Any, *inputs: Any, **named: Any) -> Any:
        given = super(made, block).forward(*inputs, **named)
        return tuple(map(_narrow, given)) if isinstance(given, tuple) else _narrow(given)

    names = {"forward": forward, "__module__": block_class.__module__, "__qualname__": block_class.__qualname__}
    made: Any = type(block_class.__name__, (block_class,), names)
    return made


def _narrow(given: Any) -> Any:
    is_wide = isinstance(given, Tensor) and given.dtype == torch.float32
    return given.to(torch.bfloat16) if is_wide and lowers(given.device.type) else given
