"""The exposure ledger: how often each clip was in a training batch, over all ranks and the whole life of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer

from vidlit.data.batch_sampler import DataRanks
from vidlit.data.exposure_table import MOST_IN_CSV, write_exposures
from vidlit.diffusion.batch import LatentBatch, clip_key
from vidlit.runs.logged_names import EXPOSURE_ADJUSTED, EXPOSURE_MAX, EXPOSURE_MEAN
from vidlit.signals.signal import Signal
from vidlit.stopping.exposure import adjusted_exposure, judge_exposure, video_exposures
from vidlit.stopping.verdict import Verdict


class ExposureLedger(Signal):
    """Counts exposures, logs them at every check, writes ``exposure.csv``, warns of the risky band.

    The file is written at every check; of more than 100,000 clips at the end, as ``exposure.parquet``.

    Logs ``exposure/mean``, ``exposure/max`` (raw, per recording) and ``exposure/adjusted``.

    Args:
        hard_cap: mean number of exposures per recording at which to stop; ``None`` for no cap.
    """

    name = "exposure"
    title = "exposures"
    judges = "how often each video was seen, where a cap is set"
    because = "each video had been seen as often as was allowed"
    go_on = "--exposure.hard_cap null"

    def __init__(self, hard_cap: float | None = None) -> None:
        self.hard_cap = hard_cap
        self._keys = torch.zeros(0, dtype=torch.int64)  # what the clips of the rows are known by
        self._counted = torch.zeros(0, dtype=torch.int64)  # agreed on by all ranks
        self._pending = torch.zeros(0, dtype=torch.int64)  # this rank's since then
        self._num_videos = 1
        self._adjusted = 0.0
        self._peak_learning_rate = 0.0
        self._per_check: dict[int, dict[str, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """One row for each training clip."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            num_clips = len(self.data.train_clips)
            self._num_videos = len({clip.source.group for clip in self.data.train_clips})
            self._keys = torch.tensor([clip_key(clip.clip_id) for clip in self.data.train_clips], dtype=torch.int64)
            self._counted = torch.zeros(num_clips, dtype=torch.int64)
            self._pending = torch.zeros(num_clips, dtype=torch.int64)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Count the clips of this rank's batch."""
        self._pending.index_add_(0, batch.indices, torch.ones(len(batch.indices), dtype=torch.int64))
        group = trainer.optimizers[0].param_groups[0]
        rate = float(group["lr"]) * float(group.get("d", 1.0))  # Prodigy's estimate scales its rate
        self._peak_learning_rate = max(self._peak_learning_rate, rate)
        micro_batch = len(batch.indices) * DataRanks.of(trainer).size
        # One call a micro-batch: its share of the step's exposures at the step's batch size.
        step = adjusted_exposure([rate], micro_batch * trainer.accumulate_grad_batches, self._num_videos)
        self._adjusted += float(step[-1]) / trainer.accumulate_grad_batches

    def on_validation_epoch_end(self, *_: Any) -> None:
        """Agree over ranks and log."""
        if not self.is_checking:
            return
        self._agree()
        statistics = {**self.statistics(), "adjusted": self._adjusted}
        self._per_check[self.trainer.global_step] = statistics
        self.module.log_dict(
            {
                EXPOSURE_MEAN.name: statistics["mean"],
                EXPOSURE_MAX.name: statistics["max"],
                EXPOSURE_ADJUSTED.name: self._adjusted,
                "step": float(self.trainer.global_step),
            },
            batch_size=1,
        )
        if len(self._keys) <= MOST_IN_CSV:
            self._write()

    def on_train_end(self, *_: Any) -> None:
        """Count what was trained on since the last check, too."""
        self._agree()
        self._write()

    def verdict(self) -> Verdict:
        """Are videos seen too often?"""
        counts = list(self.per_video().values())
        return judge_exposure(
            counts, peak_learning_rate=self._peak_learning_rate, adjusted=self._adjusted, hard_cap=self.hard_cap
        )

    def per_video(self) -> dict[str, int]:
        """Exposures of each recording so far, as last agreed on by all ranks."""
        return video_exposures(self._counted.numpy(), [clip.source.group for clip in self.data.train_clips])

    def statistics(self) -> dict[str, float]:
        """Lowest, mean and highest exposures over recordings."""
        counts = np.array(list(self.per_video().values()))
        return {"min": int(counts.min()), "mean": float(counts.mean()), "max": int(counts.max())}

    def statistics_at(self, step: int) -> dict[str, float]:
        """As :meth:`statistics`, at an earlier check."""
        return self._per_check.get(step, {"min": 0, "mean": 0.0, "max": 0})

    def _agree(self) -> None:
        pending = self.trainer.strategy.reduce(self._pending.to(self.trainer.strategy.root_device), reduce_op="sum")
        self._counted += torch.as_tensor(pending).cpu() // DataRanks.of(self.trainer).peers  # who saw the same clips
        self._pending.zero_()

    def _write(self) -> None:
        if not self.trainer.is_global_zero:
            return
        write_exposures(self.run.exposure, self.data.split, self._counted.tolist())

    # -- state: only rank 0's checkpoint is written, so ranks agree first

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the counts of all ranks."""
        self._agree()
        checkpoint["vidlit_exposure"] = {
            "keys": self._keys,
            "counted": self._counted,
            "adjusted": self._adjusted,
            "peak_learning_rate": self._peak_learning_rate,
            "per_check": self._per_check,
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on counting: counts follow their clips, not their rows."""
        state = checkpoint.get("vidlit_exposure")
        if state is not None and self.trainer.state.fn == "fit":
            counted = dict(zip(state.get("keys", self._keys).tolist(), state["counted"].tolist(), strict=True))
            self._counted = torch.tensor([counted.get(key, 0) for key in self._keys.tolist()], dtype=torch.int64)
            self._adjusted = state["adjusted"]
            self._peak_learning_rate = state["peak_learning_rate"]
            self._per_check = dict(state["per_check"])
