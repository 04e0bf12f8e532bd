"""Curves that any trainer logged, from a CSV file to what the rule judges."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vidlit.errors import UserError
from vidlit.stopping.divergence import DivergenceHistory

STEP = re.compile(r"_?((global|train|trainer)[/_ ]?)?(step|iteration|iter)s?", re.IGNORECASE)
VAL = re.compile(r"(val|valid|validation|eval|test)[/_. -]?(loss)?([/_. -]?(mean|avg))?", re.IGNORECASE)
TRAIN = re.compile(r"(train_eval|train|training)?[/_. -]?loss([/_. -]?(mean|avg|epoch))?", re.IGNORECASE)
"""What columns are called in the logs of Lightning, Hugging Face's Trainer, diffusers' scripts and W&B's exports."""


def read_history(
    path: Path, step: str = "", val: Sequence[str] = (), train_eval: Sequence[str] = ()
) -> tuple[DivergenceHistory, int]:
    """The losses of a CSV file as log-ratios to its first row with a validation loss, which stands for step 0.

    Args:
        path: Of the file, with a row of names. Cells may be empty: loggers write validation and training on rows of
            their own; of several rows of one step each column's last value counts.
        step: Name of the column of optimizer steps; found by its name where left out.
        val: Columns of validation losses, one for each recording or one for their mean; found where left out.
        train_eval: The same of training losses, best of training clips scored as the validation clips are; found where
            left out. There may be none: then no plateau can be told.

    Returns:
        The history, and the step of its first row.

    Raises:
        UserError: A column is missing, a cell is no number, or there are fewer than two validation losses.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            names = [name for name in reader.fieldnames or [] if name]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a CSV file: {error}") from error
    step = _named(path, names, "step", [step] if step else [], STEP)[0]
    val = _named(path, names, "val", val, VAL)
    train_eval = _named(path, names, "train", train_eval, TRAIN, needed=False)
    merged: dict[int, dict[str, float]] = {}
    for line, row in enumerate(rows, start=2):
        at = _number(path, line, step, row[step])
        if at is not None:
            if not (math.isfinite(at) and at >= 0):
                raise UserError(f"{path}, line {line}: {step} is {row[step]!r}, which is no number of steps.")
            known = merged.setdefault(int(at), {})
            known |= {
                name: value
                for name in (*val, *train_eval)
                if (value := _number(path, line, name, row[name])) is not None
            }
    steps = [at for at in sorted(merged) if all(name in merged[at] for name in val)]
    if len(steps) < 2:
        raise UserError(f"{path} has {len(steps)} rows with a validation loss ({', '.join(val)}): two are needed.")
    train_eval = [name for name in train_eval if any(name in merged[at] for at in merged if at <= steps[-1])]
    columns = {name: np.array([merged[at][name] for at in steps]) for name in val}
    columns |= {name: _means(merged, steps, name) for name in train_eval}
    for name, values in columns.items():
        if not values[0] > 0.0:
            raise UserError(f"{path}, step {steps[0]}: {name} is {values[0]:g}; a first loss above 0 is needed.")
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = {name: np.log(values / values[0]) for name, values in columns.items()}
    history = DivergenceHistory(
        steps=np.array([0, *steps[1:]]),
        val=np.stack([ratios[name] for name in val], axis=1),
        train_eval=np.stack([ratios[name] for name in train_eval], axis=1) if train_eval else np.zeros((len(steps), 0)),
        val_videos=tuple(val),
        train_eval_videos=tuple(train_eval),
    )
    return history, steps[0]


def _named(
    path: Path, names: list[str], what: str, given: Sequence[str], pattern: re.Pattern[str], *, needed: bool = True
) -> list[str]:
    """The columns that were asked for, or the first whose name says what it is."""
    missing = [name for name in given if name not in names]
    found = list(given) or [name for name in names if pattern.fullmatch(name.strip())][:1]
    if missing or (needed and not found):
        raise UserError(
            f"{path} has no column {', '.join(missing) or 'for --' + what}: name it by --{what}. "
            f"Its columns are {', '.join(names)}."
        )
    return found


def _number(path: Path, line: int, name: str, cell: str | None) -> float | None:
    """The number in a cell, ``None`` where it is empty."""
    if cell is None or not cell.strip():
        return None
    try:
        return float(cell)
    except ValueError:
        raise UserError(f"{path}, line {line}: {name} is {cell!r}, which is no number.") from None


def _means(merged: dict[int, dict[str, float]], steps: list[int], name: str) -> np.ndarray:
    """A column's values at these steps: the mean of what was logged since the step before, or the nearest before.

    Where nothing was logged by the first step, the first value that was stands for it.
    """
    logged = [(at, row[name]) for at, row in sorted(merged.items()) if name in row and at <= steps[-1]]
    check = np.searchsorted(steps, [at for at, _ in logged])
    total, count = (
        np.bincount(check, weights, minlength=len(steps)) for weights in ([value for _, value in logged], None)
    )
    known = np.flatnonzero(count)
    latest = np.searchsorted(known, np.arange(len(steps)), side="right") - 1
    means: np.ndarray = (total[known] / count[known])[np.maximum(latest, 0)]
    return means
