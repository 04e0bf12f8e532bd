"""What a cell of a table means: the same for CSV, TSV, JSON, JSONL and parquet, and for layouts of one's own."""

from __future__ import annotations

import ast
import json
import math
import re
import reprlib
from contextlib import suppress
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

from vidlit.errors import printable

MISSING_TEXT = frozenset({"", "nan", "NaN", "None", "null", "NULL", "<NA>"})
"""Texts that stand for nothing: empty, or what programs write where a value is missing, spelled as they do. ``NA`` and
``none`` are texts: people write those."""
_MISSING_NUMBER = frozenset(
    ["#n/a n/a", *"nan -nan na n/a #n/a #na <na> null none nat 1.#ind -1.#ind 1.#qnan -1.#qnan".split()]
)
"""Where a number is wanted, what pandas takes for missing, in any case."""
_MOST_LIST_CHARACTERS = 100_000
"""Longer texts are not looked at as lists."""


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 60


class CellError(ValueError):
    """What a cell holds cannot be used; says what it is: ``is a dict, not text``."""


def read_text(cell: Any) -> str | None:
    """A cell as text without blanks around it, or ``None`` where it is missing.

    Whole floats lose their ``.0``, which pandas gives to whole numbers in a column with missing ones.

    Args:
        cell: as a reader gives it: text, UTF-8 bytes, a number, a boolean, a date or time; of Python, numpy or pyarrow.

    Raises:
        CellError: it is something else, or holds what no file can.
    """
    value = _plain(cell)
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CellError("is bytes that are no UTF-8 text") from error
    if isinstance(value, bool):
        value = "True" if value else "False"  # as pandas writes it to CSV
    elif isinstance(value, int | float | Decimal):
        value = _number_text(value)
    elif isinstance(value, date | time):
        value = value.isoformat()
    if value is None:
        return None
    if not isinstance(value, str):
        kind = "dict" if isinstance(value, dict) else type(value).__name__
        raise CellError(f"is a {kind}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise CellError(f"holds half a character (a lone surrogate): {shown(value)}") from error
    text = value.strip()
    return None if text in MISSING_TEXT else text


def read_texts(cell: Any) -> list[str]:
    """The texts of a cell that may be a list of them, without missing ones.

    A list that was written to a text table, as JSON or as Python prints it, is read back.

    Raises:
        CellError: as :func:`read_text`.
    """
    value = _plain(cell)
    if isinstance(value, str):
        value = _parse_list(value.strip()) or value
    cells = value if isinstance(value, list | tuple) else [value]
    return [text for text in map(read_text, cells) if text is not None]


def read_name(cell: Any) -> str | None:
    """A cell that names something, such as a group: ``1``, ``1.0`` and ``"1.0"`` are one name.

    Raises:
        CellError: as :func:`read_text`.
    """
    text = read_text(cell)
    whole = re.fullmatch(r"(-?\d+)\.0+", text or "")
    return whole[1] if whole else text


def read_number(cell: Any) -> float | None:
    """A cell as a finite number from 0 up, or ``None`` where it is missing. Durations count in seconds.

    Raises:
        CellError: it is anything else.
    """
    value = _plain(cell)
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if value is None or isinstance(value, str | bytes):
        value = read_text(value)
        if value is None or value.casefold() in _MISSING_NUMBER:
            return None
    number = math.nan
    if isinstance(value, str | int | float | Decimal) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise CellError(f"is {shown(cell)}, not a number from 0 up")
    return number


def read_note(cell: Any) -> str | None:
    """A cell of a column that vidlit does not use, as text to keep with the clip: what is no text becomes JSON."""
    value = _plain(cell)
    if isinstance(value, bytes):
        return f"{len(value)} bytes" if value else None
    try:
        return read_text(value)
    except CellError:
        try:
            text = value if isinstance(value, str) else json.dumps(value, default=shown, ensure_ascii=False)
        except (TypeError, ValueError):  # keys that JSON has not
            text = shown(value)
        return text.encode(errors="backslashreplace").decode()


def shown(value: Any) -> str:
    """A cell in a message: short, and nothing that a terminal would act on."""
    return printable(_short.repr(value))


def _plain(cell: Any) -> Any:
    """A cell as Python's own types have it; every kind of missing value becomes ``None``."""
    if isinstance(cell, np.ndarray | np.generic):
        cell = cell.tolist()
    elif hasattr(cell, "as_py"):  # a pyarrow scalar
        cell = cell.as_py()
    if type(cell).__name__ in ("NAType", "NaTType"):  # pandas'
        return None
    is_nan = cell.is_nan() if isinstance(cell, Decimal) else isinstance(cell, float) and math.isnan(cell)
    return None if is_nan else cell


def _number_text(value: int | float | Decimal) -> str:
    if isinstance(value, int):
        return f"{value:d}"
    if not math.isfinite(value):
        raise CellError("is infinite")
    return f"{int(value):d}" if value == int(value) else f"{value}"


def _parse_list(text: str) -> list[str] | None:
    """The list that ``json.dumps`` or ``str`` made this text of, if one did."""
    if not (text.startswith("[") and text.endswith("]") and len(text) <= _MOST_LIST_CHARACTERS):
        return None
    try:
        texts = json.loads(text)
    except (ValueError, RecursionError):
        try:
            texts = ast.literal_eval(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        if repr(texts) != text:  # numpy's ['a' 'b'] would become one text
            return None
    return texts if isinstance(texts, list) and texts and all(isinstance(each, str) for each in texts) else None
