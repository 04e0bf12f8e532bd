"""``trainer.precision``: its names, ``bf16-true``, and where autocast lowers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.plugins import Precision

_ALIASES = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
"""Older names, which Lightning still takes."""


def precision_name(precision: Any) -> str:
    """What a Trainer calls a precision that a user gives, as a number, by an older name or not at all."""
    name = "32-true" if precision is None else str(precision)
    return _ALIASES.get(name, name)


def multiplies_low(precision: Any) -> bool:
    """Are products in bfloat16 or float16 under ``trainer.precision``?"""
    return not precision_name(precision).startswith(("32", "64"))


def lowers(device_type: str) -> bool:
    """Does autocast multiply in bfloat16 here?"""
    if device_type == "meta":  # of which autocast knows nothing
        return False
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.bfloat16


class BFloat16Weights(Precision):
    """Weights, gradients and moments in bfloat16: the module lowers its weights itself, and multiplies under autocast.

    Lightning's own plugin makes all new tensors bfloat16, too: the noise; its levels, which are then up to 0.004 apart;
    and rotary angles, which lose their digits.
    """

    precision: Literal["bf16-true"] = "bf16-true"


def precision_and_plugins(precision: Any, plugins: Sequence[Any]) -> dict[str, Any]:
    """These two options of a Trainer, with :class:`BFloat16Weights` in the place of Lightning's own.

    Args:
        precision: as a user gives it.
        plugins: further ones.
    """
    if precision == BFloat16Weights.precision:
        return {"precision": None, "plugins": [*plugins, BFloat16Weights()]}
    return {"precision": precision, "plugins": list(plugins)}
