"""What a callback is that has a say in stopping."""

from __future__ import annotations

import importlib
import pkgutil
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from vidlit.runs.signal_words import MODE_OPTION, SignalWords
from vidlit.stopping.verdict import Mode, Verdict
from vidlit.training.run_callback import RunCallback


class Signal(RunCallback):
    """A callback that judges the run after each validation; ``OverfitStopping`` asks all of them and decides.

    A subclass states its name and its words, and gives a verdict. What it judges by it gathers in Lightning's hooks,
    at the latest in ``on_validation_epoch_end``, which comes before the decision; what a resumed run needs to judge as
    the uninterrupted one is its ``state_dict``. Metrics that it logs begin with its name and have a row each
    (:func:`vidlit.runs.logged_names.register`).
    """

    name: ClassVar[str]
    """In files and options: ``overfit_stopping.policy.NAME``. Its options are a section of this name."""
    title: ClassVar[str]
    """What it finds, as in "stopped by ..."."""
    judges: ClassVar[str]
    """What it looks at, a clause."""
    because: ClassVar[str]
    """What is the case when it stops a run, a clause that names no clip: it goes onto the model card."""
    default_mode: ClassVar[Mode] = "stop"
    """What it may do where the policy does not say: ``stop`` the run, at most ``warn``, or be ``off``."""
    go_on: ClassVar[str] = MODE_OPTION
    """The options that let a run go on which it has stopped; ``{name}`` stands for its name."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        """A signal's section of the config has its name, where it states no other."""
        super().__init_subclass__(**arguments)
        if "name" in vars(cls) and "section" not in vars(cls):
            cls.section = cls.name

    @abstractmethod
    def verdict(self) -> Verdict:
        """What this signal says now, with its reason and the numbers behind it; the same on every rank."""

    @classmethod
    def words(cls) -> SignalWords:
        """What it states, as it is written beside a run."""
        return SignalWords(cls.name, cls.title, cls.judges, cls.because, cls.go_on.format(name=cls.name))


def known_signals(*, of_the_package: bool = False) -> dict[str, type[Signal]]:
    """Every signal there is, by name: the package's and those of plugins that have been loaded.

    Args:
        of_the_package: leave those of plugins out.
    """
    for module in pkgutil.iter_modules([str(Path(__file__).parent)], f"{__package__}."):
        importlib.import_module(module.name)  # from Python, one may have been imported alone
    named = (kind for kind in _subclasses(Signal) if hasattr(kind, "name"))
    return {kind.name: kind for kind in named if not of_the_package or kind.__module__.startswith("vidlit.")}


def _subclasses(kind: type[Signal]) -> list[type[Signal]]:
    direct = kind.__subclasses__()
    return [*direct, *(each for child in direct for each in _subclasses(child))]
