"""Rows of metrics that came from outside the package travel with the run: it is read without its plugins."""

from __future__ import annotations

import json
from dataclasses import asdict, fields

from vidlit.runs.directory import RunDirectory, write_text
from vidlit.runs.logged_name import LoggedName
from vidlit.runs.logged_names import plugged


def save_rows(directory: RunDirectory) -> None:
    """Write the rows that came from outside the package into a run directory."""
    if rows := plugged():
        write_text(directory.logged_names, json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def read_rows(directory: RunDirectory) -> list[LoggedName]:
    """The rows that a run directory brings along."""
    if not directory.logged_names.is_file():
        return []
    known = {field.name for field in fields(LoggedName)}
    rows = json.loads(directory.logged_names.read_text())
    return [LoggedName(**{key: value for key, value in row.items() if key in known}) for row in rows]
