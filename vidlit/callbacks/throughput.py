"""How fast training is, how much of the device it uses, and how much of its time it waits for data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psutil
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from vidlit.data.batch_sampler import DataRanks
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import LatentBatch
from vidlit.forecast.before_fit import prepare_memory, refuse_early
from vidlit.forecast.time_forecast import RunKind, remember_speed
from vidlit.lightning_internals import callbacks_of, logs_after_this_batch
from vidlit.runs.logged_names import (
    DATA_WAIT,
    DEVICE_MEMORY,
    MAIN_MEMORY,
    MEMORY_FORECAST,
    MFU,
    PEAK_MEMORY,
    SAMPLES_PER_SECOND,
    TOKENS_PER_SECOND,
)
from vidlit.signals.sample_videos import SampleVideos
from vidlit.training.flops import flops_of_a_sample, known_card, peak_flops
from vidlit.training.peak_memory import begin_phase, peak_memory
from vidlit.training.precision import multiplies_low
from vidlit.training.run_callback import RunCallback

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.module import VideoDiffusionModule


class Throughput(RunCallback):
    """Logs speed and memory, averaged since the last log; validation is not counted.

    - ``perf/samples_per_s`` and ``perf/tokens_per_s`` (latent positions), over all ranks;
    - ``perf/mfu``: model FLOP utilisation, the operations that the model itself needs (recomputed ones do not count)
      as a share of what the devices could do in that time; on a CPU of what a plain matrix product reaches there.
      Counted once for each resolution, at the length of the first prompts. Left out where a device's peak is unknown;
    - ``perf/data_wait``: share of the time spent waiting for the loader;
    - ``perf/peak_memory_gb``: most memory that rank 0 had in steps and checks, of its GPU, or its process ever had;
    - ``perf/memory_forecast_gb``: what was forecast of the GPU's before the first step; see
      :mod:`vidlit.forecast.before_fit`, which this asks to refuse what cannot fit;
    - ``perf/main_memory_gb``: what its process has in main memory now, without its loader's workers;
    - ``perf/device_memory_gb``: what is in use on its GPU now, by all processes.

    Args:
        ignore_forecast: refuse nothing.
    """

    def __init__(self, ignore_forecast: bool = False) -> None:
        self.ignore_forecast = ignore_forecast
        self._forecast: float | None = None
        self._peak: float | None = None
        self._utilisation: list[float] = []
        """MFU of each log."""
        self._flops: dict[tuple[int, ...], float] = {}
        self._since = 0.0
        """When the clock was last read."""
        self._paused: float | None = None
        """What the loader's clock said when this one was stopped for a validation."""
        self._reset(0.0)

    def _reset(self, waited: float) -> None:
        self._samples = self._tokens = 0
        self._done = self._seconds = 0.0
        self._waited_before = waited

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Choose what is left to the forecast, while the model is not loaded."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            ignore, audits = self.ignore_forecast, _has_audits(trainer)
            self._forecast = prepare_memory(trainer, self.module, ignore=ignore, audits=audits)

    def refuse_early(self, trainer: Trainer, module: VideoDiffusionModule, data: LatentDataModule) -> None:
        """Refuse what cannot fit, before clips are encoded; :meth:`setup` comes after that."""
        if not self.ignore_forecast:
            refuse_early(trainer, module, data, audits=_has_audits(trainer))

    def on_fit_start(self, *_: Any) -> None:
        """What was held to encode is no part of the peak."""
        begin_phase(self.module.device)

    def on_train_start(self, *_: Any) -> None:
        """Learn the device's peak and start the clock."""
        self._peak = peak_flops(self.module.device, multiplies_low(self.trainer.precision))
        self._utilisation = []
        self._reset(self._waited())
        self._since, self._paused = time.monotonic(), None

    def on_train_batch_start(self, *_: Any) -> None:
        """After a validation, with all that other callbacks do then, go on; this batch was waited for in between."""
        if self._paused is not None:
            self._seconds += self._waited() - self._paused
            self._since, self._paused = time.monotonic(), None

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: LatentBatch, *_: Any) -> None:
        """Count, and log as often as Lightning logs."""
        now = time.monotonic()
        self._seconds += now - self._since
        samples = len(batch.indices) * DataRanks.of(trainer).size
        self._samples += samples
        self._tokens += samples * batch.latents[0, 0].numel()
        if self._peak is not None:
            self._count(batch, samples)
        if logs_after_this_batch(trainer):
            seconds, waited = max(1e-9, self._seconds), self._waited()
            logged = {
                SAMPLES_PER_SECOND.name: self._samples / seconds,
                TOKENS_PER_SECOND.name: self._tokens / seconds,
                DATA_WAIT.name: (waited - self._waited_before) / seconds,
                PEAK_MEMORY.name: peak_memory(self.module.device) / 1e9,
                MAIN_MEMORY.name: psutil.Process().memory_info().rss / 1e9,
            }
            if self.module.device.type == "cuda":
                free, whole = torch.cuda.mem_get_info(self.module.device)
                logged[DEVICE_MEMORY.name] = (whole - free) / 1e9
            if self._forecast is not None:
                logged[MEMORY_FORECAST.name] = self._forecast / 1e9
            if self._peak is not None:
                logged[MFU.name] = self._done / seconds / (self._peak * trainer.world_size)
                self._utilisation.append(logged[MFU.name])
            self.log_numbers(logged)
            self._reset(waited)
        self._since = time.monotonic()  # counting operations is no training

    def _count(self, batch: LatentBatch, samples: int) -> None:
        """Add a batch's operations; a model that cannot be counted trains on without the number."""
        shape = tuple(batch.latents.shape[1:])
        try:
            if shape not in self._flops:
                self._flops[shape] = flops_of_a_sample(self.module.family, self.module.structure(), batch)
            self._done += samples * self._flops[shape]
        except (RuntimeError, NotImplementedError) as error:
            rank_zero_warn(f"{MFU.name} is not logged, as this model's operations cannot be counted: {error}")
            self._peak = None

    def on_validation_start(self, *_: Any) -> None:
        """Stop the clock."""
        if not self.trainer.sanity_checking:
            self.pause()

    def on_train_end(self, *_: Any) -> None:
        """Leave what the next plan on this machine estimates time by: of a GPU, for nobody plans for a CPU."""
        device = self.module.device
        card = known_card(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        if card is not None and self.trainer.is_global_zero:
            remember_speed(RunKind.of(self.module, card), self._utilisation)

    def pause(self) -> None:
        """Stop the clock until the next batch begins, once the device is through with the last."""
        self.module.numbers.last.wait()
        self._seconds += time.monotonic() - self._since
        self._paused = self._waited()

    def _waited(self) -> float:
        """Seconds that training has waited for its loader so far."""
        loader = self.trainer.train_dataloader
        assert isinstance(loader, TimedLoader)
        return loader.seconds_waited


def _has_audits(trainer: Trainer) -> bool:
    return any(isinstance(each, SampleVideos) and each.num_audit > 0 for each in callbacks_of(trainer))
