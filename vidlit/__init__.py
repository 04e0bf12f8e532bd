"""vidlit fine-tunes video diffusion transformers and stops before they overfit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.commands.cli.from_python import FitResult as FitResult
    from vidlit.commands.cli.from_python import PredictedVideo as PredictedVideo
    from vidlit.commands.cli.from_python import fit as fit
    from vidlit.commands.cli.from_python import fit_model as fit_model
    from vidlit.commands.cli.from_python import plan as plan
    from vidlit.commands.cli.from_python import predict as predict
    from vidlit.data.datamodule import LatentDataModule as LatentDataModule
    from vidlit.errors import Interrupted as Interrupted
    from vidlit.errors import UserError as UserError
    from vidlit.forecast.run_plan import RunPlan as RunPlan
    from vidlit.models.family import Family as Family
    from vidlit.models.family import open_family as open_family
    from vidlit.runs.record import RunRecord as RunRecord
    from vidlit.signals.signal import Signal as Signal
    from vidlit.training.module import VideoDiffusionModule as VideoDiffusionModule

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(__name__, __file__)
