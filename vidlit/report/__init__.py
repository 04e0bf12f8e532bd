"""A run directory, or several, as one HTML page that opens from disk."""

from vidlit.report.page import write_report

__all__ = ["write_report"]
