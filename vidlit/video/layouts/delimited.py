"""CSV and its kin to rows. A quote that is not closed costs its own row, not those that follow."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path

from vidlit.errors import UserError
from vidlit.video.layouts.cells import shown
from vidlit.video.layouts.layout import PATH_COLUMNS, Rejected, Row
from vidlit.video.layouts.source_folder import is_media

_DELIMITERS = {".csv": ",;\t|", ".tsv": "\t,;|"}
"""In the order in which they are tried: Excel writes semicolons where a comma is in numbers."""


class _RecordError(ValueError):
    """Why the record that begins at a line cannot be read."""


def read_delimited(path: Path, text: str, known: Sequence[str] = PATH_COLUMNS) -> Iterator[tuple[str, Row]]:
    """The rows of a table with a header, each with the line where it begins.

    Args:
        path: of the file, for messages; its suffix is ``.csv`` or ``.tsv``.
        text: what it holds.
        known: columns of which the header has one: the character between columns is the one that shows it.

    Raises:
        UserError: the header cannot be read, or names a column twice.
    """
    lines = [f"{line}\n" for line in text.split("\n")]
    first = next((number for number, line in enumerate(lines) if line.strip()), 0)
    delimiters = _DELIMITERS[path.suffix.lower()]
    if first + 1 < len(lines) and (told := re.fullmatch(r'"?sep=(.)"?', lines[first].strip("\n "))):
        first, delimiters = first + 1, told[1]  # Excel's own first line
    if "\0" in lines[first]:
        raise UserError(f"{path} is not UTF-8 text: save it as CSV UTF-8")
    delimiter = next((each for each in delimiters if _has_one(lines[first], each, known)), delimiters[0])
    try:
        header, taken = _record(lines, first, delimiter)
    except _RecordError as error:
        raise UserError(f"{path}: its header {error}") from error
    columns = [name.strip() or f"column {number}" for number, name in enumerate(header, 1)]
    refuse_twice(path, columns)
    place = first + taken
    while place < len(lines):
        where = f"{path.name} line {place + 1}"
        try:
            cells, taken = _record(lines, place, delimiter)
        except _RecordError as error:
            place += 1
            yield where, Rejected(where, f"{error}")
            continue
        place += taken
        if not any(cell.strip() for cell in cells):
            continue
        if any(cell.strip() for cell in cells[len(columns) :]):
            yield where, Rejected(where, "has other columns than the header: put text with commas in quotes")
        else:
            yield where, dict(zip_longest(columns, cells[: len(columns)]))


def refuse_twice(path: Path, columns: Sequence[str]) -> None:
    """Refuse a table that names a column twice: one of the two would be lost."""
    twice = [column for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise UserError(f"{path} names the column {shown(twice[0])} twice: remove or rename one of them")


def _has_one(line: str, delimiter: str, known: Sequence[str]) -> bool:
    return any(cell.strip().strip('"') in known for cell in line.split(delimiter))


def _record(lines: list[str], first: int, delimiter: str) -> tuple[list[str], int]:
    """The cells of the record that begins at a line, and the number of lines it takes.

    A stray quote within one line is read as :mod:`csv` reads it. A record of several lines must be right in the strict
    sense, for a quote that someone forgot to close ends at the next one.
    """
    following = (lines[number] for number in range(first, len(lines)))
    reader = csv.reader(chain(following, ["\n"]), delimiter=delimiter)
    try:
        cells = next(reader)
    except csv.Error as error:
        limit = csv.field_size_limit()
        if "field larger" not in str(error):
            raise _RecordError(f"is not valid CSV: {error}") from error
        raise _RecordError(f"has a cell of over {limit:,} characters, or a quote that is not closed") from error
    taken = reader.line_num
    if taken > len(lines) - first:
        raise _RecordError("opens a quote that is not closed")
    if taken > 1:
        try:
            next(csv.reader(lines[first : first + taken], delimiter=delimiter, strict=True))
        except csv.Error as error:
            raise _RecordError(f"opens a quote that ends amid the text of line {first + taken}") from error
        if any(_holds_a_row(cell, delimiter) for cell in cells if "\n" in cell):
            raise _RecordError("opens a quote that takes in what looks like other rows: close it where its text ends")
    return cells, taken


def _holds_a_row(cell: str, delimiter: str) -> bool:
    """Whether a line of a text looks like a row: several cells, one of them the name of a video."""
    rows = (line.split(delimiter) for line in cell.split("\n") if delimiter in line)
    return any(is_media(name.strip().strip('"')) for row in rows for name in row)
