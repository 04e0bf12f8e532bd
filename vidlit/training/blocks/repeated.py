"""Which modules of a transformer are its repeated blocks, how what runs them is changed, and a few in place of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import nn

FEW = 2
"""Blocks of a list that tell of all: a first and a last one. What one more adds between them, each other one does."""


def lists_of_blocks(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """The transformer's own module lists, by name."""
    return {name: child for name, child in transformer.named_children() if isinstance(child, nn.ModuleList)}


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks in order: members of its own module lists."""
    return [block for blocks in lists_of_blocks(transformer).values() for block in blocks]


def shorten(transformer: nn.Module, lists: Mapping[str, nn.ModuleList], left: Mapping[int, int]) -> None:
    """Have a transformer use the first blocks of its lists and the last one, in place.

    Args:
        transformer: to be run with a few blocks.
        lists: all of its blocks.
        left: blocks to use of each list, by its number; lists that are missing stay whole.
    """
    for number, (name, blocks) in enumerate(lists.items()):
        few = left.get(number, len(blocks)) < len(blocks)
        setattr(transformer, name, nn.ModuleList([*blocks[: left[number] - 1], blocks[-1]]) if few else blocks)


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
