"""Optimizers that run on fake tensors as others do on real ones of a GPU."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_FEWER_BITS = re.compile(r"(8bit|4bit|Fp8)$")
_STATE_BYTES = {"8bit": (1 + 4 / 256, 256, 1024), "Fp8": (1 + 4 / 256, 256, 0), "4bit": (0.5 + 4 / 128, 128, 64)}
"""Bytes of a number in the state of torchao's optimizers, its share of a scale included; numbers to a scale; bytes of a
tensor's table of values."""
STATE_IN_8_BITS = _STATE_BYTES["8bit"][0] / 4
"""Of what moments take in float32, what they take in 8 bits."""
_SMALLEST_IN_FEWER_BITS = 4096
"""Tensors with fewer numbers keep their state as it is (torchao)."""


def stand_in(make: Any, empty: Any, on_gpu: bool, parameters: Any) -> torch.optim.Optimizer:
    """An optimizer that runs on fake tensors as the asked one does on real ones of a GPU."""
    parameters = list(parameters)
    made: torch.optim.Optimizer = make(parameters)
    found = _FEWER_BITS.search(type(made).__name__)
    if found is not None:  # its step is compiled; of its state the bytes are known
        values = [pair[1] if isinstance(pair, tuple) else pair for pair in parameters]
        empty.state_factor = _share_of_state(values, *_STATE_BYTES[found[1]])
        return torch.optim.AdamW(parameters, foreach=False)
    asked: Any = made
    asked._step_supports_amp_scaling = False  # only fused ones are told of a bad gradient by a number
    for group in made.param_groups:
        if group.get("fused"):  # has no fake kernel; as one loop over the tensors it holds as little
            group["fused"], group["foreach"] = False, False
        elif on_gpu and "foreach" in group and group["foreach"] is None and not group.get("fused"):
            group["foreach"] = True
    return made


def _share_of_state(parameters: Sequence[Tensor], bytes_each: float, to_a_scale: int, table: int) -> float:
    sizes = [parameter.numel() for parameter in parameters]
    small = [n >= _SMALLEST_IN_FEWER_BITS and n % to_a_scale == 0 for n in sizes]
    kept = sum(bytes_each * n + table if is_small else 4.0 * n for n, is_small in zip(sizes, small, strict=True))
    return kept / max(1.0, 4.0 * sum(sizes))
