"""The checkpoints of a run directory: the best so far, step 0 included, and the last."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from vidlit.errors import is_out_of_memory
from vidlit.lightning_internals import save_as_best
from vidlit.runs.logged_names import VAL_SCORE
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.stopping.divergence import best_check
from vidlit.training.optimizers import release, set_aside
from vidlit.training.run_callback import RunCallback


class RunCheckpoints(RunCallback, ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt`` (lowest ``val/score``; the base model until one is lower) and ``last.ckpt``.

    The best holds weights and what callbacks know, the last the optimizer's moments, too: a run goes on from there.
    Both are written after validation, when all callbacks hold the same check; ``last.ckpt`` again when training ends.
    Without validation clips there is no best.
    Lightning's own ``save_last`` writes only at checks that are the best so far.
    """

    def __init__(self) -> None:
        super().__init__(
            filename="best",
            monitor=VAL_SCORE.name,
            mode="min",
            save_top_k=1,
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Put checkpoints where the run is, whichever loggers it has."""
        self.attach(trainer, pl_module)
        self.dirpath = str(self.run.checkpoints)
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best so far. A checkpoint is continued in its own folder, under whatever path that has now."""
        best = str(self.run.best_checkpoint)
        paths = {name: best for name in ("best_model_path", "kth_best_model_path") if state_dict.get(name)}
        scores = dict.fromkeys([best] if state_dict["best_k_models"] else [], state_dict["kth_value"])
        # Lightning forgets the best where the path was spelt otherwise.
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})

    def on_train_start(self, *_: Any) -> None:
        """Save the base model as the one to beat: where nothing is gained, it is what is restored."""
        super().on_train_start(self.trainer, self.module)
        checked = self.others(DivergenceMonitor)[0].histories()  # nothing is where validation is off
        if self.data.val_clips and checked and self.trainer.global_step == 0 and not self.best_model_path:
            start = {VAL_SCORE.name: torch.tensor(0.0), "step": torch.tensor(0), "epoch": torch.tensor(0)}
            with self._weights_alone():
                save_as_best(self, self.trainer, start)

    def check_monitor_top_k(self, trainer: Trainer, current: torch.Tensor | None = None) -> bool:
        """Whether the latest check is the best so far: the same judge that says which step is put back.

        Of a model of several parts, the best of any; when training is over, each part's own best takes its place.
        """
        step = self.trainer.global_step
        histories = self.others(DivergenceMonitor)[0].histories().values()
        return any(history.steps[best_check(history)] == step for history in histories)

    def on_validation_end(self, *_: Any) -> None:
        """Save the best, then the last."""
        if self._is_judged:
            with self._weights_alone():
                super().on_validation_end(self.trainer, self.module)
        if self.is_checking:
            self._save_last()

    def on_train_end(self, *_: Any) -> None:
        """Save steps since the last check, before the best weights are restored."""
        if self._is_judged:
            with self._weights_alone():
                super().on_train_end(self.trainer, self.module)
        self._save_last()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save nothing, and free the moments; where memory ran out, what is said of that looks at them."""
        if trainer.state.fn == "fit" and not is_out_of_memory(exception):
            release(trainer)

    @property
    def _is_judged(self) -> bool:
        """Whether any validation clip is an example for any part: there is a best check."""
        return bool(self.others(DivergenceMonitor)[0].histories())

    @contextmanager
    def _weights_alone(self) -> Iterator[None]:
        """Save no moments: they are two thirds of a checkpoint, and ``last.ckpt`` is what a run goes on from."""
        self.module.refresh_average()  # a schedule-free optimizer's
        with set_aside(self.trainer):
            yield

    def _save_last(self) -> None:
        self.trainer.save_checkpoint(self.run.last_checkpoint)
