"""How often each clip was trained on, as a file of a run: CSV, or parquet where it has very many rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vidlit.whole_files import write_whole

if TYPE_CHECKING:
    from vidlit.data.split import Split

MOST_IN_CSV = 100_000
"""Clips. A CSV of so many takes a quarter of a second to write, which is what a check may cost, and few programs open
a longer one."""


class Exposure(NamedTuple):
    """One row."""

    clip_id: str
    video: str
    """The recording that it belongs to: its group."""
    split: str
    """``train``, ``val`` or ``test``."""
    exposures: int


def write_exposures(path: Path, split: Split, exposures: Sequence[int]) -> Path:
    """Write a row for each clip of a split.

    Args:
        path: of the CSV file; one of more than :data:`MOST_IN_CSV` rows is a parquet file beside it.
        split: the clips.
        exposures: of those that are trained on.

    Returns:
        What was written.
    """
    sides = list(split._asdict().items())
    num_clips = sum(len(clips) for _, clips in sides)
    columns = {
        "clip_id": [clip.clip_id for _, clips in sides for clip in clips],
        "video": [clip.source.group for _, clips in sides for clip in clips],
        "split": [side for side, clips in sides for _ in clips],
        "exposures": [*exposures, *([0] * (num_clips - len(exposures)))],  # the training side comes first
    }
    if num_clips <= MOST_IN_CSV:
        table = io.StringIO()
        rows = csv.writer(table)  # whose line ends have names with a carriage return quoted
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
        write_whole(path, table.getvalue().encode())
        return path
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    write_whole(path.with_suffix(".parquet"), memoryview(sink.getvalue()))
    return path.with_suffix(".parquet")


def read_exposures(path: Path) -> list[Exposure]:
    """What :func:`write_exposures` wrote, given the same path; nothing where there is no such file.

    Raises:
        KeyError, ValueError: it is another table.
    """
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    elif path.with_suffix(".parquet").is_file():
        rows = pq.read_table(pa.BufferReader(path.with_suffix(".parquet").read_bytes())).to_pylist()
    else:
        return []
    return [Exposure(row["clip_id"], row["video"], row["split"], int(row["exposures"])) for row in rows]
