"""Who is held out, which clips a step sees, and the LightningDataModule."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.data.batching import BatchBudget as BatchBudget
    from vidlit.data.batching import Batching as Batching
    from vidlit.data.datamodule import LatentDataModule as LatentDataModule
    from vidlit.data.demo_folder import Demo as Demo
    from vidlit.data.split import Fold as Fold
    from vidlit.data.split import Splitting as Splitting

__getattr__, __dir__, __all__ = attach(__name__, __file__)
