"""Writes the weights users take away, after the best ones are restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer

from vidlit.run_directory import RunDirectory

if TYPE_CHECKING:
    from vidlit.module import VideoDiffusionModule


class WeightExport(Callback):
    """Fills ``weights/`` of the run directory with what diffusers loads: a LoRA file, or the transformer's folder."""

    def on_fit_end(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Export."""
        if trainer.is_global_zero and pl_module.transformer is not None:
            pl_module.export(RunDirectory(Path(trainer.default_root_dir)).weights)
