"""What a cell means, whatever kind of table it comes from."""

import datetime
import json
import math
import re
import unicodedata
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.video.layouts.cells import (
    CellError,
    printable,
    read_name,
    read_note,
    read_number,
    read_text,
    read_texts,
    shown,
)


def named(value):
    """The same in every process: without addresses."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))[:40]


MISSING = [None, "", "  ", "\n", math.nan, np.float32("nan"), Decimal("nan"), pa.scalar(None, pa.string()), b"", "nan"]
MISSING += ["NaN", "None", "null", "NULL", "<NA>", np.array("nan"), type("NAType", (), {})()]


@pytest.mark.parametrize("cell", MISSING, ids=named)
def test_missing_in_every_spelling(cell):
    assert read_text(cell) is read_name(cell) is read_number(cell) is read_note(cell) is None
    assert read_texts(cell) == []


@pytest.mark.parametrize("cell", ["NA", "N/A", "n/a", "#N/A", "NAN", "-nan", "Null", "NONE"])
def test_what_is_missing_as_a_number_may_be_a_text(cell):
    assert read_number(cell) is None
    assert read_text(cell) == cell


TEXTS = [
    (0, "0"),
    (False, "False"),
    (1.0, "1"),
    (-0.5, "-0.5"),
    (10**20, "1" + "0" * 20),
    (1e20, "1" + "0" * 20),
    (np.int64(7), "7"),
    (np.str_("a"), "a"),
    (pa.scalar(3), "3"),
    (Decimal("2.50"), "2.50"),
    (Decimal("2.00"), "2"),
    ("Bär ".encode(), "Bär"),
    (datetime.date(2026, 1, 2), "2026-01-02"),
    ("  two\nlines ", "two\nlines"),
    ("007", "007"),
    ("1.0", "1.0"),
]


@pytest.mark.parametrize(("cell", "text"), TEXTS, ids=named)
def test_as_text(cell, text):
    assert read_text(cell) == text


@pytest.mark.parametrize(
    ("cell", "name"), [(1, "1"), (1.0, "1"), ("1.0", "1"), ("1.00", "1"), ("1.1", "1.1"), (0, "0")]
)
def test_pandas_makes_no_new_names_of_whole_numbers(cell, name):
    assert read_name(cell) == name


@pytest.mark.parametrize("cell", ["1.0.0", "v1.0", "01.5", "1.", ".0", "-"])
def test_other_names_stay(cell):
    assert read_name(cell) == cell


NUMBERS = [(0, 0.0), ("0", 0.0), (" 1.5 ", 1.5), (b"2", 2.0), (Decimal("0.25"), 0.25), (np.float32(0.5), 0.5)]
NUMBERS += [(datetime.timedelta(milliseconds=1500), 1.5), (pa.scalar(3.0), 3.0)]


@pytest.mark.parametrize(("cell", "number"), NUMBERS, ids=named)
def test_as_a_number(cell, number):
    assert read_number(cell) == number


@pytest.mark.parametrize(
    "cell", [True, False, "soon", "1,5", -1, "-1", math.inf, "inf", [1], {}, 10**400, "1:30"], ids=named
)
def test_no_number(cell):
    with pytest.raises(CellError, match="not a number from 0 up"):
        read_number(cell)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"en": "a"}, "is a dict"),
        (["a"], "is a list"),
        (b"\xff", "no UTF-8"),
        ("\ud800", "half a character"),
        (math.inf, "infinite"),
        (object(), "is a object"),
    ],
    ids=named,
)
def test_no_text(cell, reason):
    with pytest.raises(CellError, match=reason):
        read_text(cell)


LISTS = [
    (["a", " b "], ["a", "b"]),
    (["", None, math.nan, "b"], ["b"]),
    ([], []),
    (("a", 2), ["a", "2"]),
    (np.array(["a", "b"], object), ["a", "b"]),
    (pa.scalar(["a", "b"]), ["a", "b"]),
    ("a", ["a"]),
    ('["a", "b"]', ["a", "b"]),
    ("['a', \"it's\"]", ["a", "it's"]),
    ("['a' 'b']", ["['a' 'b']"]),
    ("[close up] a cat [blurred]", ["[close up] a cat [blurred]"]),
    ("[1, 2]", ["[1, 2]"]),
    ("[" * 5000 + "]" * 5000, ["[" * 5000 + "]" * 5000]),
]


@pytest.mark.parametrize(("cell", "texts"), LISTS, ids=named)
def test_lists_of_texts(cell, texts):
    assert read_texts(cell) == texts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1))
def test_a_list_that_was_written_as_text_is_read_back(texts):
    try:
        expected = read_texts(texts)
    except CellError:
        return  # halves of characters
    assert read_texts(str(texts)) == read_texts(json.dumps(texts)) == expected


CELLS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.decimals() | st.timedeltas(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.binary(max_size=3), inner),
    max_leaves=4,
)


def read_or_reason(read, cell):
    try:
        return read(cell)
    except CellError as error:
        return error


@settings(max_examples=60, deadline=None)
@given(CELLS)
def test_every_cell_is_read_or_refused_with_a_short_reason(cell):
    for read in (read_text, read_texts, read_name, read_number):
        found = read_or_reason(read, cell)
        if isinstance(found, CellError):
            assert len(str(found)) < 300
            assert printable(str(found)) == str(found)
            continue
        for text in found if isinstance(found, list) else [found]:
            assert text is None or isinstance(text, float) or text.encode().decode().strip() == text
    note = read_note(cell)
    assert note is None or note.encode()


def test_names_are_printed_without_what_terminals_act_on():
    assert printable("xy\udce9 \x1b[2J\n\u202e.mp4") == r"xy\xe9 \x1b[2J\x0a\u202e.mp4"
    name = unicodedata.normalize("NFD", "Bär 大 😀.mp4")
    assert printable(name) == name
    assert len(shown("x" * 10_000)) < 100
