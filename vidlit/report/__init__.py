"""A run directory, or several, as one HTML page that opens from disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.report.notebook import VideoRow as VideoRow
    from vidlit.report.page import write_report as write_report

__getattr__, __dir__, __all__ = attach(__name__, __file__)
