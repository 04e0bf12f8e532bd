"""Blocks compiled by torch, each when it is first called; as they were where that fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from vidlit.training.blocks.repeated import repeated_blocks

COST = "11 to 28 s on an H100, and again at a second resolution"
"""What compiling took for LTX-Video 2B and Wan 2.1 1.3B with 16 cores; see docs/measured.md."""
_RECOMPILE_LIMIT = 64
"""Of one forward method, for two classes of blocks: with gradients and without, in training and not, one sample and
several, lengths that are fixed and lengths that vary. Torch's own 8 are fewer than that; beyond it, blocks run as they
are."""


def compile_blocks(transformer: nn.Module, backend: str = "inductor") -> None:
    """Compile the forward pass of each block, in place; blocks of one class share what is compiled.

    What stands around a block's forward pass (hooks that gather its shards, or bring its weights) is not compiled.
    The first resolution is compiled as it is, which gives the fastest code; when another comes the compiler makes code
    for any, once, so that many buckets do not compile many times.

    Args:
        transformer: whose blocks are recomputed already, where they shall be.
        backend: torch's.
    """
    import torch._dynamo
    import torch._functorch.config

    config: Any = torch._dynamo.config
    # With the forward pass, where what fails can be caught, and not when the first gradient arrives.
    torch._functorch.config.force_non_lazy_backward_lowering = True
    config.recompile_limit = max(_RECOMPILE_LIMIT, config.recompile_limit)
    logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_no_advice)
    blocks = repeated_blocks(transformer)
    for block in blocks:
        vars(block)["forward"] = _Compiled(block.forward, backend, blocks)


class _Compiled:
    """A block's forward pass, compiled; all blocks' are put back as they were where that fails."""

    def __init__(self, forward: Callable[..., Any], backend: str, blocks: list[nn.Module]) -> None:
        self.plain, self._compiled = forward, torch.compile(forward, backend=backend)
        self._blocks = blocks

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        try:
            return self._compiled(*inputs, **named)
        except TorchDynamoException as error:  # the compiler's alone: what fails in the block is raised as it is
            reason = " ".join(str(error).partition("Set TORCHDYNAMO")[0].split())[:300]
            rank_zero_warn(
                f"the blocks run without torch.compile, up to twice as long: {type(error).__name__}: {reason}. "
                "--model.memory.compile false leaves it out from the start."
            )
            for block in self._blocks:
                compiled = vars(block).get("forward")
                if isinstance(compiled, _Compiled):  # else somebody has put another in its place
                    block.forward = compiled.plain
            return self.plain(*inputs, **named)


def _is_no_advice(record: logging.LogRecord) -> bool:
    """Leave out a warning of in-place operations in what is recomputed: that gradients are right is tested."""
    return "context_fn is passed to torch.utils.checkpoint" not in str(record.msg)
