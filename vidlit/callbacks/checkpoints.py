"""The checkpoints of a run directory: the best so far, step 0 included, and the last."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vidlit.run_directory import RunDirectory


class RunCheckpoints(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` (lowest ``val/log_ratio``; the base model until one is lower) and ``last.ckpt``.

    Both are written after validation, when all callbacks hold the same check.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="best",
            monitor="val/log_ratio",
            mode="min",
            save_top_k=1,
            save_last=True,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put checkpoints where the run is, whichever loggers it has."""
        self.dirpath = str(RunDirectory(Path(trainer.default_root_dir)).checkpoints)
        super().setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the base model as the one to beat: where nothing is gained, it is what is restored."""
        super().on_train_start(trainer, pl_module)
        if trainer.global_step == 0 and not self.best_model_path:
            start = {"val/log_ratio": torch.tensor(0.0), "step": torch.tensor(0), "epoch": torch.tensor(0)}
            self._save_topk_checkpoint(trainer, start)
