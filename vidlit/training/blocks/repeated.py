"""Which modules of a transformer are its repeated blocks, and how what runs them is changed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from torch import nn


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks in order: members of its own module lists."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]


def run_by(block: nn.Module, around: Callable[..., Any]) -> None:
    """Have a block's forward pass run by a function, in place.

    It gets a class derived from its own, the same as all blocks of its kind: a function of each block's own would have
    a compiler compile each block.

    Args:
        block: whose names, hooks and weights stay.
        around: ``around(forward, *inputs, **named)`` gives what the block gives; a function of a module.
    """
    block_class: Any = type(block)
    block.__class__ = _run_by(block_class, around)


@cache
def _run_by(block_class: Any, around: Callable[..., Any]) -> Any:
    def forward(block: Any, *inputs: Any, **named: Any) -> Any:
        return around(super(made, block).forward, *inputs, **named)

    names = {"forward": forward, "__module__": block_class.__module__, "__qualname__": block_class.__qualname__}
    made: Any = type(block_class.__name__, (block_class,), names)
    return made
