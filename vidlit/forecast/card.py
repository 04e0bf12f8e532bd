"""How much memory a GPU has: the one that is here, or one that is named by its gigabytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vidlit.errors import UserError

if TYPE_CHECKING:
    import torch

_GIB = 2**30
_USABLE = 0.99
"""Of the gigabytes that a card is named by: an RTX 4090 (24 GB) has 23.99 GiB, an H100 (80 GB) 79.6."""
CONTEXT = 0.6e9
"""Bytes that CUDA's context and the libraries' workspaces take before anything is allocated."""
FRAGMENTS = 0.06
"""Of the peak, what lies between tensors in the allocator: 1 to 5 GB were seen on an H100."""


def needs(peak: float) -> float:
    """Bytes that a card has to have for so many that tensors take: the one rule of what fits."""
    return (1 + FRAGMENTS) * peak + CONTEXT


@dataclass(frozen=True)
class GraphicsCard:
    """A GPU.

    Args:
        name: of it.
        memory: bytes.
    """

    name: str
    memory: float

    def __str__(self) -> str:
        return f"{self.name} ({self.memory / 1e9:.1f} GB)"


def parse_memory(text: str) -> GraphicsCard:
    """A card by what it is called: ``24GB`` has 24 GiB, as makers count; ``25e9`` or ``25000000000`` are bytes.

    Raises:
        UserError: it is no size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(g|gb|gib)\s*", text.lower())
    if found is not None:
        return GraphicsCard(f"a card of {float(found[1]):g} GB", float(found[1]) * _GIB * _USABLE)
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not size >= _GIB / 1024:
        raise UserError(f"{text!r} is no size of a GPU's memory: write it as 24GB.")
    return GraphicsCard("a card", size)


def card_here(device: torch.device | int = 0) -> GraphicsCard | None:
    """A GPU of this machine, the first one unless told otherwise; ``None`` where there is none."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(device)
    return GraphicsCard(found.name, float(found.total_memory))
