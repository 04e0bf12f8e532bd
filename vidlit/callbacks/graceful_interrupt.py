"""Ctrl-C, SIGTERM and, where there is such, SIGUSR1: finish the step, save, leave. And what other processes ask for."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from vidlit.callbacks.averaged_validation import AveragedValidation
from vidlit.callbacks.logger_record import LoggerRecord
from vidlit.callbacks.throughput import Throughput
from vidlit.errors import Interrupted
from vidlit.lightning_internals import forget_sigterm, is_mid_step
from vidlit.runs.live.requests import Request, Requests
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.signals.sample_videos import SampleVideos
from vidlit.training.run_callback import RunCallback

_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no third one
SIGNALS = tuple(getattr(signal, name) for name in _SIGNALS if hasattr(signal, name))
"""Ctrl-C; the end of a preemptible machine or job; what SLURM is asked to send before the time is up."""
SAMPLE_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)  # Windows has none: there it is asked by `vidlit sample`
"""Asks for samples."""
_KINDS: tuple[Request, ...] = ("sample", "stop", "save")


class GracefulInterrupt(RunCallback):
    """Ends a run at the next step boundary when the process is interrupted; a second signal ends it at once.

    A handler that raised in the middle of a step would leave weights, moments and counters of different steps. So
    the handlers only take note; at the end of the optimizer step ``last.ckpt`` is saved, and before the next batch is
    used :class:`Interrupted` is raised. Where a validation is due between the two it still runs, and its checkpoint
    takes the first one's place: a resumed run meets the same checks as an uninterrupted one.

    At the end of a step the run also does what other processes ask of it (:mod:`vidlit.runs.live.requests`):
    ``vidlit sample``, or SIGUSR2, has samples made, which changes nothing of the run; ``vidlit stop`` ends it as at its
    last step; ``vidlit stop --save-only`` as an interrupt does.
    """

    def __init__(self) -> None:
        self.received = 0
        self._by: str | None = None
        self._asked: set[Request] = set()
        self._requests: Requests | None = None
        self._previous: dict[int, Any] = {}
        self._before_samples: Any = None
        self._saved = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take note of the signal that asks for samples, from here on: whoever has no handler is ended by it."""
        super().setup(trainer, pl_module, stage)
        self._requests = Requests(self.run) if trainer.is_global_zero else None
        if SAMPLE_SIGNAL is not None:
            self._before_samples = signal.signal(SAMPLE_SIGNAL, lambda *_: self._asked.add("sample"))

    def on_train_start(self, *_: Any) -> None:
        """Take the signals over from Lightning, whose handler would raise before validation is done."""
        # A SIGTERM during the first validation is in Lightning's hands, which would act on it in the middle of a step.
        self.received, self._saved = signal.SIGTERM if self.trainer.received_sigterm else 0, False
        forget_sigterm(self.trainer)
        self._previous = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, *_: Any) -> None:
        """Save, unless gradients of half a step are waiting; or do what is asked."""
        if is_mid_step(self.trainer):
            return
        self._agree()
        if "save" in self._asked and not self.received:
            self.received, self._by = signal.SIGINT, "`vidlit stop --save-only`"
        if self.received:
            self.trainer.save_checkpoint(self.run.last_checkpoint)
            self._saved = True
        elif "stop" in self._asked:
            self._stop()
        elif "sample" in self._asked:
            self._sample()

    def on_train_batch_start(self, *_: Any) -> None:
        """Leave, when what was done is saved."""
        if self._saved:
            raise Interrupted(self.received, self.run.last_checkpoint, self._by)

    def _agree(self) -> None:
        """Let all ranks know what any of them was told, and the first one what it was asked."""
        if self._requests is not None:
            for kind in self._requests.look():
                self._asked.add(kind)
                self._requests.take(kind)
        if self.trainer.world_size > 1:
            told = [self.received, *(kind in self._asked for kind in _KINDS)]
            heard = torch.tensor(told, device=self.trainer.strategy.root_device)
            self.received, *asked = self.trainer.strategy.reduce(heard, reduce_op="max").tolist()
            self._asked = {kind for kind, is_asked in zip(_KINDS, asked, strict=True) if is_asked}

    def _stop(self) -> None:
        """End the run after this step; Lightning checks once more then."""
        for stopping in self.others(OverfitStopping):
            stopping.was_asked = True
        if not self.trainer.should_stop:
            self._say("`vidlit stop` ends the run: one more check, then the best weights are kept")
        self.trainer.should_stop = True

    def _sample(self) -> None:
        """Sample with the weights that a check would look at now. One rank alone trains on where it cannot."""
        self._asked.discard("sample")
        step, was_training = self.trainer.global_step, self.module.training
        for throughput in self.others(Throughput):
            throughput.pause()
        try:
            with self.others(AveragedValidation)[0].swapped_in():
                made = [samples.sample_now() for samples in self.others(SampleVideos)]
        except Exception as error:
            if self.trainer.world_size > 1:
                raise
            self.module.train(was_training)
            self._say(f"no samples were made ({type(error).__name__}: {error}); training goes on")
            return
        for record in self.others(LoggerRecord):
            record.show_samples(step)
        where = f"samples, as asked for: {self.run.samples(step)}"
        self._say(where if any(made) else "nothing to sample: set samples.prompts, samples.num_audit or num_videos")

    def _say(self, text: str) -> None:
        if self.trainer.is_global_zero:
            print(f"step {self.trainer.global_step}: {text}", flush=True)

    def on_train_end(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore_handlers()

    def on_exception(self, *_: Any) -> None:
        """Give the signals back."""
        self._restore_handlers()
        self._restore_sample_handler()

    def teardown(self, *_: Any, **__: Any) -> None:
        """Give the signal that asks for samples back: until here the kept weights are sampled."""
        self._restore_sample_handler()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _restore_sample_handler(self) -> None:
        if SAMPLE_SIGNAL is not None and self._before_samples is not None:
            signal.signal(SAMPLE_SIGNAL, self._before_samples)
            self._before_samples = None
