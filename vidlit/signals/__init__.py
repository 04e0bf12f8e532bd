"""What has a say in stopping: callbacks that judge the run, and the one that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.signals.divergence_monitor import DivergenceMonitor as DivergenceMonitor
    from vidlit.signals.drift_monitor import DriftMonitor as DriftMonitor
    from vidlit.signals.exposure_ledger import ExposureLedger as ExposureLedger
    from vidlit.signals.overfit_stopping import OverfitStopping as OverfitStopping
    from vidlit.signals.sample_videos import SampleVideos as SampleVideos
    from vidlit.signals.signal import Signal as Signal

__getattr__, __dir__, __all__ = attach(__name__, __file__)
