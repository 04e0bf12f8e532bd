"""The base of vidlit's callbacks: the run, the data and the model by their own types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from vidlit.lightning_internals import callbacks_of, datamodule_of
from vidlit.runs.directory import RunDirectory

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.training.module import VideoDiffusionModule

Kind = TypeVar("Kind", bound=Callback)


class RunCallback(Callback):
    """A callback that knows the run it is in.

    Lightning hands every hook a Trainer and a module of its own types. From :meth:`setup` on these are attributes, of
    vidlit's types, so that a hook needs no more than ``*_`` for its arguments::

        class LogClips(RunCallback):
            def on_fit_start(self, *_: Any) -> None:
                print(len(self.data.train_clips), self.module.base, self.run.path)

    A subclass that has a ``setup`` of its own calls this one first.
    """

    section: ClassVar[str] = ""
    """Of the config, for its options: a callback that states one takes part in every fit."""

    trainer: Trainer
    module: VideoDiffusionModule
    data: LatentDataModule
    run: RunDirectory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take up the run."""
        self.attach(trainer, pl_module)
        super().setup(trainer, pl_module, stage)

    def attach(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the run, where a hook may come before :meth:`setup`: ``on_exception`` does when another's failed."""
        self.trainer = trainer
        self.module = cast("VideoDiffusionModule", pl_module)
        self.data = datamodule_of(trainer)
        self.run = RunDirectory(Path(trainer.default_root_dir))

    @property
    def is_checking(self) -> bool:
        """Whether the validation going on is a check of a fit, after step 0's: one that is judged."""
        return self.trainer.state.fn == "fit" and not self.trainer.sanity_checking

    def log_numbers(self, numbers: Mapping[str, float]) -> None:
        """Log numbers of this rank; Lightning would copy each to the device, and read it back from there."""
        self.module.log_dict({name: torch.tensor(float(number)) for name, number in numbers.items()}, batch_size=1)

    def others(self, kind: type[Kind]) -> list[Kind]:
        """The Trainer's callbacks of a kind: callbacks ask each other, never a file."""
        return [callback for callback in callbacks_of(self.trainer) if isinstance(callback, kind)]
