"""Activations that are computed again in the backward pass instead of kept, but for those of attention."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vidlit.training.blocks.repeated import repeated_blocks, run_by


def recompute_blocks(transformer: nn.Module, share: bool | int | float) -> None:
    """Recompute activations of some of the blocks in the backward pass, in place; what attention gave is kept.

    Attention is most of the time of a block whose clip is long, and what it gives is as small as the block's input:
    in Wan 2.1 1.3B at 49x480x832 computing it again takes an eighth of a step and saves 1.9 GB.

    Args:
        transformer: whose blocks are not compiled yet: a compiler decides by itself what it keeps, and recomputes
            attention, unless it sees both the block and this.
        share: which blocks; see :func:`chosen_blocks`.
    """
    blocks = repeated_blocks(transformer)
    for number in chosen_blocks(len(blocks), share):
        run_by(blocks[number], _recomputing)


def chosen_blocks(num_blocks: int, share: bool | int | float) -> list[int]:
    """Numbers of the blocks that are recomputed, spread evenly.

    Args:
        num_blocks: of a transformer.
        share: of the blocks, between 0 and 1; or a whole number k for every k-th; or all, or none.
    """
    if not share:
        return []
    if not isinstance(share, float):
        return list(range(0, num_blocks, int(share)))
    count = round(share * num_blocks)
    return [number for number in range(num_blocks) if number * count % num_blocks < count]


def _recomputing(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """What a block gives; of what it computed its input and what attention gave are kept."""
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    contexts = partial(create_selective_checkpoint_contexts, _keeps)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _keeps(context: Any, operation: Any, *inputs: Any, **named: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_attention(operation) else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def is_attention(operation: Any) -> bool:
    """Whether an operation of torch's is attention, by whichever kernel.

    All have the word in their names: ``aten._scaled_dot_product_cudnn_attention``, ``_flash_``, ``_efficient_``,
    ``_flash_attention_for_cpu``, those of other devices; but for packages' own, as ``flash_attn_3``. Torch's ``math``
    is none: it is matrix products and a softmax.
    """
    return any(word in str(operation) for word in ("attention", "flash_attn"))
