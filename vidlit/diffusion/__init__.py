"""Noising, the loss and generation: one mathematics for training, validation and samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning as Conditioning
    from vidlit.diffusion.batch import LatentBatch as LatentBatch
    from vidlit.diffusion.generate import Scheduler as Scheduler
    from vidlit.diffusion.loss import denoising_loss as denoising_loss
    from vidlit.diffusion.loss import paired_losses as paired_losses
    from vidlit.diffusion.rectified_flow import RectifiedFlow as RectifiedFlow

__getattr__, __dir__, __all__ = attach(__name__, __file__)
