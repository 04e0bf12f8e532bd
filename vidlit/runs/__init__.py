"""A run on disk: its folder, its record, checkpoints, loggers, what is kept secret."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.runs.directory import RunDirectory as RunDirectory
    from vidlit.runs.logged_names import LoggedName as LoggedName
    from vidlit.runs.logged_names import register as register
    from vidlit.runs.record import Curve as Curve
    from vidlit.runs.record import RunRecord as RunRecord

__getattr__, __dir__, __all__ = attach(__name__, __file__)
