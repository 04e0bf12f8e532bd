"""The LightningModule, optimizers, averages of weights, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule as VideoDiffusionModule
    from vidlit.training.run_callback import RunCallback as RunCallback

__getattr__, __dir__, __all__ = attach(__name__, __file__)
