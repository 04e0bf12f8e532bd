"""Each time that a run went on: from which step, and which options were changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from vidlit.runs.directory import RunDirectory, append_text

_MAX_LETTERS = 60


class Change(NamedTuple):
    """One option that differs from what the run was saved with."""

    option: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.option} {_short(self.before)} -> {_short(self.after)}"


def record_resume(directory: RunDirectory, step: int, changes: Sequence[Change]) -> None:
    """Add a line to ``resumes.jsonl``: ``config.yaml``, which is of the latest part, and it tell every part's options.

    Args:
        directory: of the run.
        step: of the checkpoint that it goes on from.
        changes: since it was last saved.
    """
    line = {
        "step": step,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "changed": {change.option: [change.before, change.after] for change in changes},
    }
    append_text(directory.resumes, json.dumps(line, default=str) + "\n")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS]}..."
