"""CSV and its kin: which rows a text holds, whatever is wrong with some of them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.errors import UserError
from vidlit.video.layouts.delimited import read_delimited
from vidlit.video.layouts.layout import Rejected


def read(text, name="metadata.csv"):
    """Captions by the video, and reasons by the place."""
    rows = list(read_delimited(Path(name), text))
    good = {row["file_name"]: row["caption"] for _, row in rows if not isinstance(row, Rejected)}
    return good, {place.removeprefix(f"{name} "): row.reason for place, row in rows if isinstance(row, Rejected)}


def test_an_open_quote_costs_its_own_row():
    good, bad = read('file_name,caption\n0.mp4,zero\n1.mp4,"one\n2.mp4,two\n3.mp4,three\n')
    assert good == {"0.mp4": "zero", "2.mp4": "two", "3.mp4": "three"}
    assert list(bad) == ["line 3"]
    assert "quote that is not closed" in bad["line 3"]


def test_an_open_quote_that_a_later_row_closes_costs_its_own_row():
    """As CSV each is a row of several lines, and that is what pandas makes of it."""
    for later in ('2.mp4,"two"', '2.mp4,a screen of 24"', '2.mp4,He said "two" to me'):
        good, bad = read(f'file_name,caption\n1.mp4,"one\n{later}\n3.mp4,three\n')
        assert set(good) == {"2.mp4", "3.mp4"}
        assert list(bad) == ["line 2"]
    good, bad = read('caption,file_name\n"one,1.mp4\na screen of 24",2.mp4\nthree,3.mp4\n')
    assert good["3.mp4"] == "three"
    assert list(bad) == ["line 2"]


def test_captions_of_several_lines():
    text = 'file_name,caption\n1.mp4,"one\n\ntwo, ""three"""\n2.mp4,four\n'
    assert read(text) == ({"1.mp4": 'one\n\ntwo, "three"', "2.mp4": "four"}, {})
    assert read('caption,file_name\n"one\ntwo",1.mp4') == ({"1.mp4": "one\ntwo"}, {})


def test_stray_quotes_within_a_line_are_read_as_before():
    good, bad = read('file_name,caption\n1.mp4,a 24" screen\n2.mp4,"two" more\n3.mp4,"a ""big"" one"\n')
    assert good == {"1.mp4": 'a 24" screen', "2.mp4": "two more", "3.mp4": 'a "big" one'}
    assert not bad


@pytest.mark.parametrize("newlines", ["\n", "\n\n", "\n,,\n", "\n  \n", ""])
def test_empty_lines_are_no_rows(newlines):
    assert read(f"file_name,caption{newlines}{newlines and '1.mp4,one'}{newlines}")[1] == {}


def test_more_cells_than_columns():
    good, bad = read("file_name,caption\n1.mp4,one, two\n2.mp4,two,,\n")
    assert good == {"2.mp4": "two"}
    assert "other columns" in bad["line 2"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name;caption\n1.mp4;one, two\n"),
        ("metadata.csv", "sep=;\nfile_name;caption\n1.mp4;one, two\n"),
        ("metadata.csv", 'caption\tfile_name\n"one, two"\t1.mp4\n'),
        ("metadata.csv", '"file_name" , "caption"\n1.mp4,"one, two"\n'.replace(" , ", ",")),
        ("metadata.csv", "\n\nfile_name|caption\n1.mp4|one, two\n"),
        ("metadata.tsv", "file_name\tcaption\n1.mp4\tone, two\n"),
        ("metadata.tsv", 'file_name,caption\n1.mp4,"one, two"\n'),
    ],
)
def test_the_character_between_cells_is_found_by_the_header(name, text):
    assert read(text, name) == ({"1.mp4": "one, two"}, {})


def test_a_column_may_have_no_name_but_no_two_have_one():
    rows = [row for _, row in read_delimited(Path("a.csv"), ",file_name,caption,\n0,1.mp4,one,x\n")]
    assert rows == [{"column 1": "0", "file_name": "1.mp4", "caption": "one", "column 4": "x"}]
    with pytest.raises(UserError, match="names the column 'caption' twice"):
        read("file_name,caption,caption\n1.mp4,one,two\n")


def test_a_very_long_cell_costs_its_row():
    good, bad = read(f"file_name,caption\n1.mp4,{'x' * 200_000}\n2.mp4,two\n")
    assert good == {"2.mp4": "two"}
    assert "131,072 characters" in bad["line 2"]


def test_other_encodings_are_told_by_the_header():
    with pytest.raises(UserError, match="not UTF-8"):
        read("f\0i\0l\0e\0_\0n\0a\0m\0e\0\n")


TEXTS = st.text(st.sampled_from('ab ,;"\n\t\u2028é'), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from(",;\t"), st.booleans())
def test_what_csv_writes_is_read_back(captions, delimiter, quoted):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    writer.writerows([("file_name", "caption"), *((f"{n}.mp4", caption) for n, caption in enumerate(captions))])
    written = {f"{n}.mp4": caption for n, caption in enumerate(captions)}
    assert read(file.getvalue().replace("\r\n", "\n")) == (written, {})


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS.map(lambda text: text.replace("\n", " ")), st.booleans()), min_size=1, max_size=6))
def test_no_row_is_swallowed(rows):
    """Rows of one line each, some with a quote that opens and is not closed: each is used or refused."""
    lines = ["file_name,caption", *(f"{n}.mp4,{chr(34) * opened}{text}" for n, (text, opened) in enumerate(rows))]
    found = list(read_delimited(Path("metadata.csv"), "\n".join(lines)))
    assert [place for place, _ in found] == [f"metadata.csv line {n + 2}" for n in range(len(rows))]
    for number, (_, row) in enumerate(found):
        assert isinstance(row, Rejected) or row["file_name"] == f"{number}.mp4"
