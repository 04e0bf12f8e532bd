"""A table on disk, of any kind, to rows."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vidlit.errors import UserError
from vidlit.video.layouts.delimited import read_delimited, refuse_twice
from vidlit.video.layouts.layout import Rejected, Row

TABLE_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet")


def read_table(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows of a CSV, TSV, JSON, JSONL or parquet file, each with where it stands. A bad row costs itself only.

    Raises:
        UserError: the file cannot be read at all.
    """
    match path.suffix.lower():
        case ".csv" | ".tsv":
            yield from read_delimited(path, read_text_file(path))
        case ".jsonl":
            for number, line in enumerate(read_text_file(path).split("\n"), 1):
                place = f"{path.name} line {number}"
                if not line.strip():
                    continue
                try:
                    yield place, _object(place, json.loads(line, object_pairs_hook=_Object))
                except (ValueError, RecursionError) as error:
                    yield place, Rejected(place, f"is not valid JSON: {error}")
        case ".json":
            rows = read_json_file(path)
            if not isinstance(rows, list):
                raise UserError(f"{path} must hold a list of objects, each a row")
            for number, row in enumerate(rows, 1):
                place = f"{path.name} entry {number}"
                yield place, _object(place, row)
        case _:
            for number, row in enumerate(_read_parquet(path), 1):
                yield f"{path.name} row {number}", row


def read_text_file(path: Path) -> str:
    """Text with newlines alone between lines: UTF-8, or UTF-16 with its mark, as Excel and Notepad write it.

    Raises:
        UserError: the file cannot be opened, or is no such text.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except ValueError as error:
        raise UserError(f"{path} is not UTF-8 text, save it as such: {error}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_json_file(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        UserError: it is no JSON.
    """
    text = read_text_file(path)
    try:
        return json.loads(text, object_pairs_hook=_Object)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error


class _Object(dict[str, Any]):
    """A JSON object that remembers a key which it names twice; :mod:`json` would keep the last value alone."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.is_ambiguous = len(self) < len(pairs)


def _object(place: str, row: Any) -> Row:
    if not isinstance(row, _Object):
        return Rejected(place, "is not a JSON object")
    return Rejected(place, "names a key twice") if row.is_ambiguous else row


def _readable(kind: Any) -> Any:
    """A column's type as one that Python can hold whatever is in it."""
    import pyarrow as pa

    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return pa.large_binary()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz)
    if pa.types.is_duration(kind):
        return pa.duration("us")
    return pa.time64("us") if pa.types.is_time64(kind) else kind


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa  # a folder without parquet starts without it
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
        refuse_twice(path, table.column_names)
        try:
            rows: list[dict[str, Any]] = table.to_pylist()
        except ValueError:  # text that is no UTF-8 costs its own row as bytes; Python's times have no nanoseconds
            schema = pa.schema([(column.name, _readable(column.type)) for column in table.schema])
            rows = table.cast(schema, safe=False).to_pylist()
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise UserError(f"{path} is not a readable parquet file: {error}") from error
    return rows
