"""Which modules of a transformer are its repeated blocks."""

from __future__ import annotations

from torch import nn


def repeated_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The transformer's blocks in order: members of its own module lists."""
    return [block for child in transformer.children() if isinstance(child, nn.ModuleList) for block in child]
