"""The checkpoints of a run directory: the best so far, step 0 included, and the last."""

from __future__ import annotations

from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vidlit.runs.directory import RunDirectory


class RunCheckpoints(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` (lowest ``val/score``; the base model until one is lower) and ``last.ckpt``.

    Both are written after validation, when all callbacks hold the same check; ``last.ckpt`` again when training ends.
    Where nothing is held out there is no best.
    Lightning's own ``save_last`` writes only at checks that are the best so far.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="best",
            monitor="val/score",
            mode="min",
            save_top_k=1,
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
        if _held_out(trainer) and trainer.global_step == 0 and not self.best_model_path:
            start = {"val/score": torch.tensor(0.0), "step": torch.tensor(0), "epoch": torch.tensor(0)}
            self._save_topk_checkpoint(trainer, start)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the best, then the last."""
        if _held_out(trainer):
            super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save steps since the last check, before the best weights are restored."""
        if _held_out(trainer):
            super().on_train_end(trainer, pl_module)
        self._save_last(trainer)

    def _save_last(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(RunDirectory(Path(trainer.default_root_dir)).last_checkpoint)


def _held_out(trainer: Trainer) -> bool:
    return bool(trainer.datamodule.val_clips)  # type: ignore[attr-defined]
