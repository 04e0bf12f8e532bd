"""Where the time of a step is booked, in a run whose parts are slow on purpose."""

import time

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vidlit.callbacks.throughput import Throughput
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.training.step.numbers import StepNumbers

LONG = 0.08


class Batches(torch.utils.data.IterableDataset):
    """Endless tiny batches."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __iter__(self):
        while True:
            time.sleep(self.seconds)
            prompt = Conditioning(torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool), {})
            row = torch.zeros(1, dtype=torch.int64)
            yield LatentBatch(torch.ones(1, 1, 1, 1, 1), prompt, row, row)


class Slow(LightningModule):
    """One number to train; `seconds` a step, once it has begun."""

    def __init__(self, seconds):
        super().__init__()
        self.seconds = seconds
        self.numbers = StepNumbers()
        self.number = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, batch_idx):
        time.sleep(self.seconds)
        return (self.number * batch.latents).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    family = None

    def structure(self):
        raise NotImplementedError("nothing to count")


class Other(Callback):
    """Another callback, called after the one that measures; slow after steps or after checks."""

    def __init__(self, after_step=0.0, after_check=0.0):
        self.after_step, self.after_check = after_step, after_check

    def on_train_batch_end(self, *args):
        time.sleep(self.after_step)

    def on_validation_end(self, *args):
        time.sleep(self.after_check)


def measured(tmp_path, other=None, load=0.0, step=0.0):
    """Share of the time booked as waiting, and samples per second, at the last of 6 steps."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=6,
        limit_val_batches=1,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        log_every_n_steps=6,
        callbacks=[Throughput(), other or Other()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Slow(step), TimedLoader(Batches(load), batch_size=None), TimedLoader(Batches(0.0), batch_size=None))
    metrics = trainer.callback_metrics
    return float(metrics["perf/data_wait"]), float(metrics["perf/samples_per_s"])


def test_only_the_loader_is_waited_for(tmp_path):
    """Not the backward pass, which a callback that reads from the GPU waits for, nor what follows a check."""
    share, rate = measured(tmp_path, Other(after_step=LONG))
    assert share < 0.2
    assert rate == pytest.approx(1 / LONG, rel=0.5)  # the last one's is not over
    share, rate = measured(tmp_path, Other(after_check=10 * LONG), step=LONG)
    assert share < 0.2
    assert rate == pytest.approx(1 / LONG, rel=0.3)  # checks are left out


def test_a_slow_loader_is_waited_for(tmp_path):
    share, rate = measured(tmp_path, load=LONG, step=LONG)
    assert share == pytest.approx(0.5, abs=0.15)
    assert rate == pytest.approx(0.5 / LONG, rel=0.3)
