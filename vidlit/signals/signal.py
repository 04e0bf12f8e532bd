"""What a callback is that has a say in stopping."""

from __future__ import annotations

from abc import abstractmethod

from vidlit.stopping.verdict import Verdict
from vidlit.training.run_callback import RunCallback


class Signal(RunCallback):
    """A callback that judges the run after each validation; ``OverfitStopping`` asks all of them and decides."""

    @abstractmethod
    def verdict(self) -> Verdict:
        """What this signal says now, with its reason and the numbers behind it; the same on every rank."""
