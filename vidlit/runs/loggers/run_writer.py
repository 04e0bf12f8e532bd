"""What W&B, TensorBoard and MLflow are given beside the numbers: said once, written by each in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lightning.pytorch.loggers import Logger


@dataclass(frozen=True)
class LoggedVideo:
    """A video file and the prompt that it was made from."""

    path: Path
    caption: str | None = None


class RunWriter(ABC):
    """Writes into one logger's run; all of it is called from that logger's own thread, in the order of the run.

    Whatever it is given holds no key, and no name of a file that is not to be told.

    Args:
        logger: whose run it is.
    """

    logger_class: ClassVar[str]
    """Name of Lightning's logger that it is for."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger

    @abstractmethod
    def begin(self, tags: Sequence[str], group: str | None) -> None:
        """Open the run.

        Args:
            tags: what it is to be found by: family, base, what is trained.
            group: what it belongs to, of a fold or the second phase of a refit.
        """

    @abstractmethod
    def config(self, config: Mapping[str, Any]) -> None:
        """The config, a summary of the dataset, versions; again when a run goes on."""

    @abstractmethod
    def histogram(self, name: str, values: Sequence[int], step: int) -> None:
        """How values are spread."""

    @abstractmethod
    def videos(self, videos: Mapping[str, LoggedVideo], step: int) -> None:
        """Videos by name; those of one name follow each other over the steps."""

    @abstractmethod
    def alert(self, title: str, text: str, step: int) -> None:
        """What someone should look at: a warning, a stop."""

    @abstractmethod
    def decision(self, decision: Mapping[str, Any], kept_log_ratio: float | None, step: int) -> None:
        """How the run ended: all of its summary.

        Args:
            decision: by name, nested; ``reason`` is a sentence.
            kept_log_ratio: validation loss of the kept weights against the base, a log-ratio.
            step: at which it ended.
        """


def flat(nested: Mapping[str, Any], separator: str = "/") -> dict[str, Any]:
    """One level of names: ``{"a": {"b": 1}}`` becomes ``{"a/b": 1}``."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping) and value:
            found |= {f"{name}{separator}{below}": each for below, each in flat(value, separator).items()}
        else:
            found[str(name)] = value
    return found


def writer_for(logger: Logger) -> RunWriter | None:
    """The writer for one of Lightning's loggers; ``None`` for one that takes numbers alone."""
    from vidlit.runs.loggers.mlflow_writer import MLflowWriter
    from vidlit.runs.loggers.tensorboard_writer import TensorBoardWriter
    from vidlit.runs.loggers.wandb_writer import WandbWriter

    known = {each.logger_class: each for each in (WandbWriter, TensorBoardWriter, MLflowWriter)}
    found = next((known[kind.__name__] for kind in type(logger).__mro__ if kind.__name__ in known), None)
    return None if found is None else found(logger)
