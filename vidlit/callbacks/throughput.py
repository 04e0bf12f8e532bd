"""How fast training is, how much of the device it uses, and how much of its time it waits for data."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import LatentBatch
from vidlit.training.flops import peak_flops
from vidlit.training.peak_memory import peak_memory

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


class Throughput(Callback):
    """Logs speed and memory, averaged since the last log; validation is not counted.

    - ``perf/samples_per_s`` and ``perf/tokens_per_s`` (latent positions), over all ranks;
    - ``perf/mfu``: model FLOP utilisation, the operations that the model itself needs (recomputed ones do not count)
      as a share of what the devices could do in that time; on a CPU of what a plain matrix product reaches there.
      Counted once for each resolution, at the length of the first prompts. Left out where a device's peak is unknown;
    - ``perf/data_wait``: share of the time spent waiting for the loader;
    - ``perf/peak_memory_gb``: most memory that rank 0 ever had, of its GPU or, without one, of its process.
    """

    def __init__(self) -> None:
        self._peak: float | None = None
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

    def on_train_start(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:  # type: ignore[override]
        """Learn the device's peak and start the clock."""
        self._peak = peak_flops(pl_module.device, str(trainer.precision) != "32-true")
        self._reset(_waited(trainer))
        self._since, self._paused = time.monotonic(), None

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """After a validation, with all that other callbacks do then, go on; this batch was waited for in between."""
        if self._paused is not None:
            self._seconds += _waited(trainer) - self._paused
            self._since, self._paused = time.monotonic(), None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: VideoDiffusionModule,  # type: ignore[override]
        outputs: STEP_OUTPUT,
        batch: LatentBatch,
        batch_idx: int,
    ) -> None:
        """Count, and log as often as Lightning logs."""
        now = time.monotonic()
        self._seconds += now - self._since
        samples = len(batch.indices) * trainer.world_size
        self._samples += samples
        self._tokens += samples * batch.latents[0, 0].numel()
        if self._peak is not None:
            self._count(pl_module, batch, samples)
        log_every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Lightning's own counter decides when logged values reach the loggers.
        if (trainer.fit_loop.epoch_loop._batches_that_stepped + 1) % log_every == 0:
            seconds, waited = max(1e-9, self._seconds), _waited(trainer)
            logged = {
                "perf/samples_per_s": self._samples / seconds,
                "perf/tokens_per_s": self._tokens / seconds,
                "perf/data_wait": (waited - self._waited_before) / seconds,
                "perf/peak_memory_gb": peak_memory(pl_module.device) / 1e9,
            }
            if self._peak is not None:
                logged["perf/mfu"] = self._done / seconds / (self._peak * trainer.world_size)
            pl_module.log_dict(logged, batch_size=1)
            self._reset(waited)
        self._since = time.monotonic()  # counting operations is no training

    def _count(self, pl_module: VideoDiffusionModule, batch: LatentBatch, samples: int) -> None:
        """Add a batch's operations; a model that cannot be counted trains on without the number."""
        shape = tuple(batch.latents.shape[1:])
        try:
            if shape not in self._flops:
                self._flops[shape] = pl_module.flops_of_a_sample(batch)
            self._done += samples * self._flops[shape]
        except (RuntimeError, NotImplementedError) as error:
            rank_zero_warn(f"perf/mfu is left out, this model's operations cannot be counted: {error}")
            self._peak = None

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop the clock."""
        if not trainer.sanity_checking:
            self._seconds += time.monotonic() - self._since
            self._paused = _waited(trainer)


def _waited(trainer: Trainer) -> float:
    """Seconds that training has waited for its loader so far."""
    loader = trainer.train_dataloader
    assert isinstance(loader, TimedLoader)
    return loader.seconds_waited
