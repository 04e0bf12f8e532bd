"""``trainer.precision: bf16-true``."""

from __future__ import annotations

from typing import Literal

from lightning.pytorch.plugins import Precision


class BFloat16Weights(Precision):
    """Weights, gradients and moments in bfloat16: the module lowers its weights itself, and multiplies under autocast.

    Lightning's own plugin makes all new tensors bfloat16, too: the noise; its levels, which are then up to 0.004 apart;
    and rotary angles, which lose their digits.
    """

    precision: Literal["bf16-true"] = "bf16-true"
