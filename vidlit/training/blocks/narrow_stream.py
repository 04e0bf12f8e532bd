"""What goes from block to block, in autocast's dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vidlit.training.blocks.repeated import repeated_blocks, run_by
from vidlit.training.precision import lowers


def narrow_stream(transformer: nn.Module) -> None:
    """Let the blocks give bfloat16 where autocast multiplies in it, in place.

    LTX-Video, LTX-2 and the prompt's stream of HunyuanVideo 1.5 scale what they add by a table of their own. Where that
    is trained in float32 it makes all that goes from block to block float32, twice the bytes to read, write and keep.
    In pipelines, over a base in bfloat16 and with shards it is bfloat16, and other families cast it themselves.

    Args:
        transformer: whose blocks are neither recomputed nor compiled yet.
    """
    for block in repeated_blocks(transformer):
        run_by(block, _giving_narrow)


def _giving_narrow(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    given = forward(*inputs, **named)
    return tuple(map(_narrow, given)) if isinstance(given, tuple) else _narrow(given)


def _narrow(given: Any) -> Any:
    is_wide = isinstance(given, Tensor) and given.dtype == torch.float32
    return given.to(torch.bfloat16) if is_wide and lowers(given.device.type) else given
