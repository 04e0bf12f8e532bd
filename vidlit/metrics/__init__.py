"""torchmetrics.Metric classes; nothing here knows Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.metrics.paired_loss import PairedLoss as PairedLoss
    from vidlit.metrics.paired_loss import log_ratio as log_ratio

__getattr__, __dir__, __all__ = attach(__name__, __file__)
