"""Activations that are computed again in the backward pass instead of kept, but for those of attention."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from vidlit.training.blocks.repeated import repeated_blocks


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
        block_class: Any = type(blocks[number])
        # A class for a class: a function of each block's own would have the compiler compile each block.
        blocks[number].__class__ = _recomputing(block_class)


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


@cache
def _recomputing(block_class: Any) -> Any:
    """The same class, whose forward pass keeps its input and what attention gave."""

    def forward(block: Any, *inputs: Any, **named: Any) -> Any:
        run = super(made, block).forward
        if not torch.is_grad_enabled():
            return run(*inputs, **named)
        contexts = partial(create_selective_checkpoint_contexts, _keeps)
        return checkpoint(run, *inputs, use_reentrant=False, context_fn=contexts, **named)

    names = {"forward": forward, "__module__": block_class.__module__, "__qualname__": block_class.__qualname__}
    made: Any = type(block_class.__name__, (block_class,), names)
    return made


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
