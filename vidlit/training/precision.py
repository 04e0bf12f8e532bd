"""``trainer.precision: bf16-true``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lightning.pytorch.plugins import Precision


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
