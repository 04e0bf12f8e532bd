"""Memory of a device between two phases of a command, which hold large models one after the other."""

from __future__ import annotations

import gc

import torch


def free_memory(device: torch.device | str) -> None:
    """Give back what nothing refers to any more: models refer to themselves, and torch keeps what it has for later."""
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()
