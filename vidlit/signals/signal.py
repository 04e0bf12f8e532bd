"""What a callback is that has a say in stopping."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer

from vidlit.stopping.verdict import Verdict

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


class Signal(Callback):
    """A callback that judges the run after each validation; ``OverfitStopping`` asks all of them and decides."""

    @abstractmethod
    def verdict(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> Verdict:
        """What this signal says now, with its reason and the numbers behind it; the same on every rank."""
