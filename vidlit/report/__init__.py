"""A run directory, or several, as one HTML page that opens from disk."""

from vidlit.report.notebook import VideoRow
from vidlit.report.page import write_report

__all__ = ["VideoRow", "write_report"]
