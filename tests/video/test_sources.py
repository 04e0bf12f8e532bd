import csv
import json
import math
import os
import sys
import tempfile
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vidlit.errors import UserError, printable
from vidlit.video.layouts.source_folder import is_media, is_utf8
from vidlit.video.sources import read_sources


@pytest.fixture
def folder(tmp_path):
    """Files with the names of videos; reading rows opens none of them."""
    folder = tmp_path / "clips"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.mp4", "b.webm", "sub/c.mov", "d.png"):
        (folder / name).write_bytes(b"never opened")
    (tmp_path / "outside.mp4").write_bytes(b"secret")
    return folder


ROWS = [
    {"file_name": "a.mp4", "caption": "A boat, at sea", "group": "sea", "camera": "left"},
    {"file_name": "sub/c.mov", "caption": "Ein Bär"},
]


def write_csv(path, rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [",".join(columns)]
    lines += [",".join('"' + str(row.get(c, "")).replace('"', '""') + '"' for c in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")


def write_tsv(path, rows):
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *([row.get(c, "") for c in columns] for row in rows)])


def write_json(path, rows):
    path.write_text(json.dumps(rows), "utf-8")


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


METADATA = [("metadata.csv", write_csv), ("metadata.tsv", write_tsv)]
METADATA += [("metadata.jsonl", write_jsonl), ("metadata.parquet", write_parquet)]
TABLES = [*METADATA, ("set.json", write_json)]


@pytest.mark.parametrize(("name", "write"), METADATA)
def test_metadata(folder, name, write):
    write(folder / name, ROWS)
    sources = read_sources(folder)
    assert sources.layout == name
    first, second = sources.videos
    assert (first.video, first.caption, first.group) == ("a.mp4", "A boat, at sea", "sea")
    assert first.path == folder / "a.mp4"
    assert first.extra == {"camera": "left"}
    assert (second.video, second.caption, second.group, second.extra) == ("sub/c.mov", "Ein Bär", "sub/c.mov", {})
    assert sources.unlisted == ("b.webm", "d.png")
    assert not sources.quarantined


@pytest.mark.parametrize("column", ["caption", "text", "prompt"])
def test_names_of_the_caption_column(folder, column):
    write_csv(folder / "metadata.csv", [{"file_name": "a.mp4", column: "x"}])
    assert read_sources(folder).videos[0].caption == "x"


def test_a_second_caption_column_is_kept(folder):
    write_csv(folder / "metadata.csv", [{"file_name": "a.mp4", "caption": "x", "text": "long x"}])
    assert read_sources(folder).videos[0].extra == {"text": "long x"}


def test_byte_order_mark_and_newlines_in_captions(folder):
    (folder / "metadata.csv").write_text('file_name,caption\r\na.mp4,"two\r\nlines"\r\n', "utf-8-sig")
    assert read_sources(folder).videos[0].caption.split() == ["two", "lines"]


def test_unusual_line_separators_stay_in_captions(folder):
    (folder / "metadata.csv").write_text("file_name,caption\na.mp4,one\u2028two\x85three\n", "utf-8")
    assert read_sources(folder).videos[0].caption == "one\u2028two\x85three"


def test_spans(folder):
    rows = [
        {"file_name": "a.mp4", "caption": "x", "start": "1.5", "end": "3"},
        {"file_name": "a.mp4", "caption": "y", "start_frame": "10"},
        {"file_name": "a.mp4", "caption": "z", "start_frame": "0", "end_frame": "48"},
    ]
    write_csv(folder / "metadata.csv", rows)
    first, second, third = read_sources(folder).videos
    assert (first.start, first.end, first.frame_span) == (1.5, 3.0, None)
    assert (second.start, second.frame_span) == (None, (10, None))
    assert third.frame_span == (0, 48)


def test_prompts_and_videos(folder):
    (folder / "prompts.txt").write_text("first\nsecond\n")
    (folder / "videos.txt").write_text("a.mp4\nsub/c.mov\n")
    sources = read_sources(folder)
    assert [(v.video, v.caption) for v in sources.videos] == [("a.mp4", "first"), ("sub/c.mov", "second")]
    (folder / "videos.txt").write_text("a.mp4\n")
    with pytest.raises(UserError, match=r"2 lines and videos\.txt has 1"):
        read_sources(folder)


def test_a_caption_file_beside_each_video(folder):
    (folder / "a.txt").write_text("a boat")
    (folder / "sub" / "c.txt").write_text("a bear\n")
    (folder / "d.txt").write_text("a still")
    (folder / "._a.mp4").write_bytes(b"what another system left")
    sources = read_sources(folder)
    assert [(v.video, v.caption) for v in sources.videos] == [
        ("a.mp4", "a boat"),
        ("d.png", "a still"),
        ("sub/c.mov", "a bear"),
    ]
    assert [(bad.video, bad.reason) for bad in sources.quarantined] == [("b.webm", "no caption file b.txt beside it")]


@pytest.mark.parametrize(("name", "write"), [("set.csv", write_csv), ("set.jsonl", write_jsonl)])
def test_table_with_media_path(folder, name, write):
    write(folder / name, [{"media_path": "a.mp4", "caption": "x"}])
    (folder / "notes.json").write_text('{"not": "a table"}')
    (folder / "scores.csv").write_text("score\n1\n")
    assert read_sources(folder).videos[0].video == "a.mp4"
    assert read_sources(folder / name).layout == name


def test_json_list(folder):
    (folder / "dataset.json").write_text(json.dumps([{"media_path": "a.mp4", "caption": "x"}, 3]))
    sources = read_sources(folder)
    assert len(sources.videos) == 1
    assert sources.quarantined[0].video == "dataset.json entry 2"


def test_two_tables_are_ambiguous_but_one_can_be_named(folder):
    write_csv(folder / "metadata.csv", ROWS)
    write_jsonl(folder / "metadata.jsonl", ROWS[:1])
    with pytest.raises(UserError, match=r"metadata\.csv, metadata\.jsonl"):
        read_sources(folder)
    assert len(read_sources(folder / "metadata.jsonl").videos) == 1


def test_no_layout_shows_the_accepted_ones(folder, tmp_path):
    with pytest.raises(UserError, match="4 videos but no captions") as caught:
        read_sources(folder)
    for name in ("metadata.csv", "file_name", "prompts.txt", "a.txt", "media_path"):
        assert name in str(caught.value)
    with pytest.raises(UserError, match="no such folder"):
        read_sources(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no videos and no table"):
        read_sources(tmp_path / "empty")


def test_hostile_and_broken_rows_cost_themselves_only(folder, tmp_path):
    (folder / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    (folder / "inside.mp4").symlink_to(folder / "a.mp4")
    os.mkfifo(folder / "pipe.mp4")
    refused = {
        "../outside.mp4": "'..'",
        "sub/../../outside.mp4": "'..'",
        "..\\outside.mp4": "'..'",
        str(tmp_path / "outside.mp4"): "absolute",
        "C:\\outside.mp4": "absolute",
        "http://example.org/a.mp4": "URL",
        "file:///etc/passwd": "URL",
        "link.mp4": "link that leads out",
        "up/outside.mp4": "link that leads out",
        "loop.mp4": "",
        "pipe.mp4": "not a regular file",
        "sub": "not a regular file",
        "missing.mp4": "does not exist",
        "a" * 5000 + ".mp4": "",
    }
    rows = [{"file_name": name, "caption": "x"} for name in refused]
    rows += [{"file_name": "a.mp4", "caption": "good"}, {"file_name": "inside.mp4", "caption": "good too"}]
    write_csv(folder / "metadata.csv", rows)
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["a.mp4", "inside.mp4"]
    assert {bad.video for bad in sources.quarantined} == set(refused)
    for bad in sources.quarantined:
        assert refused[bad.video] in bad.reason
        assert "metadata.csv line" in bad.reason


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"file_name": "a.mp4", "caption": "  "}, "no caption"),
        ({"file_name": "", "caption": "x"}, "names no video"),
        ({"file_name": "a.mp4", "caption": "x", "start": "soon"}, "start is 'soon'"),
        ({"file_name": "a.mp4", "caption": "x", "start": "-1"}, "from 0 up"),
        ({"file_name": "a.mp4", "caption": "x", "end": "inf"}, "from 0 up"),
        ({"file_name": "a.mp4", "caption": "x", "start_frame": "1.5"}, "whole numbers"),
        ({"file_name": "a.mp4", "caption": "x", "start": "3", "end": "2"}, "before it starts"),
        ({"file_name": "a.mp4", "caption": "x", "start": "3", "end_frame": "9"}, "keep one"),
    ],
)
def test_reasons(folder, row, reason):
    write_csv(folder / "metadata.csv", [row, {"file_name": "b.webm", "caption": "good"}])
    sources = read_sources(folder)
    assert len(sources.videos) == 1
    assert reason in sources.quarantined[0].reason


def test_broken_lines(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.mp4", "caption": "x"}\n{"file\n\n[1]\n')
    assert [bad.video for bad in read_sources(folder).quarantined] == ["metadata.jsonl line 2", "metadata.jsonl line 4"]
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,caption\na.mp4,x\nb.webm,one,two\n")
    assert read_sources(folder).quarantined[0].video == "metadata.csv line 3"


def test_unreadable_tables_say_so(folder):
    (folder / "metadata.csv").write_bytes(b"file_name,caption\na.mp4,\xff\xfe\n")
    with pytest.raises(UserError, match="not UTF-8"):
        read_sources(folder)
    (folder / "metadata.csv").unlink()
    (folder / "metadata.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match="not a readable parquet"):
        read_sources(folder)


def test_nothing_usable_names_the_first_reasons(folder):
    write_csv(folder / "metadata.csv", [{"file_name": "missing.mp4", "caption": "x"}])
    with pytest.raises(UserError, match=r"no usable video.*missing\.mp4: does not exist"):
        read_sources(folder)


@pytest.mark.parametrize(("name", "write"), TABLES)
def test_zero_is_a_value_and_nan_is_none(folder, name, write):
    """As pandas writes them: numbers for groups, floats for whole numbers, NaN for what is missing."""
    rows = [
        {"file_name": "a.mp4", "caption": "x", "group": 0.0, "start": 0.0, "end": 1.0},
        {"file_name": "b.webm", "caption": "y", "group": 1.0, "start": math.nan, "end": math.nan},
        {"file_name": "sub/c.mov", "caption": "z", "group": math.nan, "start": 2.0, "end": math.nan},
        {"file_name": "d.png", "caption": "nan", "group": 1.0, "start": 0.0, "end": math.nan},
    ]
    write(folder / name, rows)
    sources = read_sources(folder)
    assert [(v.group, v.start, v.end) for v in sources.videos] == [
        ("0", 0.0, 1.0),
        ("1", None, None),
        ("sub/c.mov", 2.0, None),
    ]
    assert [(bad.video, "no caption" in bad.reason) for bad in sources.quarantined] == [("d.png", True)]


@pytest.mark.parametrize(("name", "write"), TABLES)
def test_of_several_captions_the_first_is_used_and_the_others_are_counted(folder, name, write):
    write(folder / name, [{"file_name": "a.mp4", "caption": ["", "one", "two", "three"]}])
    sources = read_sources(folder)
    assert [video.caption for video in sources.videos] == ["one"]
    assert list(sources.further_captions.values()) == [2]


def test_a_trigger_comes_before_captions_that_do_not_have_it(folder):
    rows = {"a.mp4": ["a dog", "Ohwx runs"], "b.webm": "ohwx, here", "d.png": "the ohwxes", "sub/c.mov": "by ohwx."}
    lines = [json.dumps({"file_name": name, "caption": caption}) for name, caption in rows.items()]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    sources = read_sources(folder, "ohwx")
    assert {video.video: video.captions for video in sources.videos} == {
        "a.mp4": ("ohwx, a dog", "Ohwx runs"),
        "b.webm": ("ohwx, here",),
        "d.png": ("ohwx, the ohwxes",),
        "sub/c.mov": ("by ohwx.",),
    }
    assert sources.triggered == 2
    first = read_sources(folder, first_captions=True)
    assert first.videos[0].captions == ("a dog",)
    assert first.further_captions == sources.further_captions


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ('{"file_name": "a.mp4", "caption": {"en": "x"}}', "caption is a dict"),
        ('{"file_name": ["a.mp4"], "caption": "x"}', "file_name is a list"),
        ('{"file_name": "a.mp4", "caption": "\\ud800"}', "half a character"),
        ('{"file_name": "a\\udce9.mp4", "caption": "x"}', "half a character"),
        ('{"file_name": "a.mp4", "caption": "x", "caption": "y"}', "names a key twice"),
        ('{"file_name": "a.mp4", "caption": "x", "start": true}', "start is True"),
    ],
)
def test_what_is_no_text_or_number_costs_its_row(folder, row, reason):
    (folder / "metadata.jsonl").write_text(f'{row}\n{{"file_name": "b.webm", "caption": "good"}}\n')
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["b.webm"]
    assert reason in sources.quarantined[0].reason


def test_bytes_in_parquet(folder):
    table = pa.table({"file_name": [b"a.mp4", b"b.webm"], "caption": ["B\u00e4r".encode(), b"\xff"]})
    pq.write_table(table, folder / "metadata.parquet")
    sources = read_sources(folder)
    assert [video.caption for video in sources.videos] == ["B\u00e4r"]
    assert "no UTF-8" in sources.quarantined[0].reason


def test_times_that_python_has_not_cost_no_table(folder):
    times = pa.array([123456789, None], pa.timestamp("ns", "UTC"))
    lengths = pa.array([1500000001, None], pa.duration("ns"))
    table = pa.table({"file_name": ["a.mp4", "b.webm"], "caption": ["x", "y"], "made": times, "end": lengths})
    pq.write_table(table, folder / "metadata.parquet")
    first, second = read_sources(folder).videos
    assert (first.end, second.end) == (1.5, None)
    assert first.extra == {"made": "1970-01-01T00:00:00.123456+00:00"}
    assert second.extra == {}


def test_a_pipe_that_is_called_a_table_is_not_opened(folder):
    os.mkfifo(folder / "metadata.csv")
    os.mkfifo(folder / "set.jsonl")
    (folder / "a.txt").write_text("a boat")
    assert [video.video for video in read_sources(folder).videos] == ["a.mp4"]


def test_other_columns_are_kept_as_text(folder):
    row = {"file_name": "a.mp4", "caption": "x", "tags": ["a", "b"], "score": 1.0, "none": None, "nan": math.nan}
    write_jsonl(folder / "metadata.jsonl", [row])
    assert read_sources(folder).videos[0].extra == {"tags": '["a", "b"]', "score": "1"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_tables_and_captions_as_windows_writes_them(folder, encoding):
    (folder / "metadata.csv").write_bytes("file_name;caption\r\nsub\\c.mov;B\u00e4r, gro\u00df\r\n".encode(encoding))
    assert [(v.video, v.caption) for v in read_sources(folder).videos] == [("sub/c.mov", "B\u00e4r, gro\u00df")]
    (folder / "metadata.csv").unlink()
    (folder / "a.txt").write_bytes("B\u00e4r\r\n".encode(encoding))
    assert [v.caption for v in read_sources(folder).videos] == ["B\u00e4r"]


@pytest.mark.parametrize(("on_disk", "in_table"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_both_spellings_of_accents_find_a_file(folder, on_disk, in_table):
    name = "sub/B\u00e4r.mp4"
    stored = unicodedata.normalize(on_disk, name)
    (folder / stored).write_bytes(b"never opened")
    write_csv(folder / "metadata.csv", [{"file_name": unicodedata.normalize(in_table, name), "caption": "x"}])
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == [stored]
    assert stored not in sources.unlisted
    (folder / "metadata.csv").unlink()
    (folder / unicodedata.normalize(in_table, "sub/B\u00e4r.txt")).write_text("a bear")
    assert [video.caption for video in read_sources(folder).videos] == ["a bear"]


def test_a_colon_is_no_drive(folder):
    (folder / "a:b.mp4").write_bytes(b"never opened")
    rows = [{"file_name": name, "caption": "x"} for name in ("a:b.mp4", "C:\\a.mp4", "c:/a.mp4", "\\\\host\\a.mp4")]
    write_csv(folder / "metadata.csv", rows)
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["a:b.mp4"]
    assert ["absolute" in bad.reason for bad in sources.quarantined] == [True] * 3


def test_caption_files_of_either_name_and_in_any_case(folder):
    for name in ("a.TXT", "b.webm.txt", "b.txt", "sub/c.Txt", "notes.txt"):
        (folder / name).write_text(f"caption in {name}")
    (folder / "E.MP4").write_bytes(b"never opened")
    (folder / "E.txt").write_text("loud")
    sources = read_sources(folder)
    assert {video.video: video.caption for video in sources.videos} == {
        "E.MP4": "loud",
        "a.mp4": "caption in a.TXT",
        "b.webm": "caption in b.webm.txt",
        "sub/c.mov": "caption in sub/c.Txt",
    }
    assert sources.skipped == {".txt files that belong to no video": ("b.txt", "notes.txt")}


def test_caption_files_that_cannot_be_read_cost_their_video(folder, tmp_path):
    (folder / "a.txt").write_text("good")
    (folder / "b.txt").write_bytes(b"\xff")
    (folder / "d.txt").symlink_to(tmp_path / "outside.mp4")
    os.mkfifo(folder / "sub" / "c.txt")
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["a.mp4"]
    reasons = {bad.video: bad.reason for bad in sources.quarantined}
    assert "not UTF-8" in reasons["b.webm"]
    assert "leads out" in reasons["d.png"]
    assert "not a regular file" in reasons["sub/c.mov"]


@pytest.mark.parametrize("table", [True, False])
def test_names_that_are_no_utf8_are_quarantined_and_can_be_printed(folder, table):
    (folder / os.fsdecode(b"xy\xe9.mp4")).write_bytes(b"never opened")
    (folder / os.fsdecode(b"xy\xe9.txt")).write_text("a xy\u00e9")
    (folder / "a.txt").write_text("a boat")
    if table:
        write_csv(folder / "metadata.csv", ROWS[:1])
    sources = read_sources(folder)
    assert [bad.video for bad in sources.quarantined if "UTF-8" in bad.reason] == [r"xy\xe9.mp4"]
    if table:
        assert r"xy\xe9.txt" in sources.skipped[".txt files that belong to no video"]
    with pytest.raises(UserError, match="not UTF-8"):
        read_sources(folder / os.fsdecode(b"xy\xe9.txt"))


def test_links_to_folders(folder, tmp_path):
    """Inside they lead to files that have names of their own; outside is never looked at; hidden ones are followed."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "e.mp4").write_bytes(b"not ours")
    (folder / ".data" / "deep").mkdir(parents=True)
    (folder / ".data" / "deep" / "h.mp4").write_bytes(b"never opened")
    for link, target in (("out", tmp_path / "elsewhere"), ("again", folder / "sub"), ("loop", folder), ("in", ".data")):
        (folder / link).symlink_to(target)
    (folder / "sub" / "deep").symlink_to("../.data/deep")
    write_csv(folder / "metadata.csv", [{"file_name": name, "caption": "x"} for name in ("a.mp4", "again/c.mov")])
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["a.mp4", "again/c.mov"]
    assert sources.unlisted == ("b.webm", "d.png", "in/deep/h.mp4")
    assert sources.skipped == {"links to folders outside of the source": ("out",)}


def test_files_of_a_hugging_face_cache(tmp_path):
    repository = tmp_path / "hub" / "datasets--who--what"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for name, content in (("a.mp4", "1"), ("metadata.csv", "file_name,caption\na.mp4,x\nb.mp4,x\nc.mp4,x\n")):
        (repository / "blobs" / name.replace(".", "")).write_text(content)
        (snapshot / name).symlink_to(f"../../blobs/{name.replace('.', '')}")
    other = tmp_path / "hub" / "datasets--who--other" / "blobs"
    other.mkdir(parents=True)
    (other / "b").write_text("another's")
    (snapshot / "b.mp4").symlink_to(other / "b")
    (repository / "token").write_text("secret")
    (snapshot / "c.mp4").symlink_to("../../token")
    sources = read_sources(snapshot)
    assert [video.path for video in sources.videos] == [repository / "blobs" / "amp4"]
    assert ["leads out" in bad.reason for bad in sources.quarantined] == [True, True]


@pytest.mark.parametrize("name", ["metadata.csv", "prompts.txt", "train/metadata.csv"])
def test_what_is_read_of_a_folder_lies_in_it(folder, tmp_path, name):
    (tmp_path / "secret.csv").write_text("file_name,caption\na.mp4,secret\n")
    (folder / "videos.txt").write_text("a.mp4\nb.webm\n")
    (folder / "train").mkdir()
    (folder / name).symlink_to(tmp_path / "secret.csv")
    with pytest.raises(UserError, match="leads out of the folder"):
        read_sources(folder)


def test_a_table_of_videos_that_cannot_be_read_is_named(folder):
    (folder / "captions.csv").write_bytes(b"file_name,caption\na.mp4,xy\xe9\n")
    with pytest.raises(UserError, match=r"no captions; .*captions\.csv is not UTF-8 text"):
        read_sources(folder)


def test_a_broken_first_row_hides_no_table(folder):
    (folder / "set.jsonl").write_text('{"media\n{"media_path": "a.mp4", "caption": "x"}\n')
    sources = read_sources(folder)
    assert [video.video for video in sources.videos] == ["a.mp4"]
    assert [bad.video for bad in sources.quarantined] == ["set.jsonl line 1"]


NAMES = st.sampled_from(
    ["a", "b", "B\u00e4r", unicodedata.normalize("NFD", "B\u00e4r"), "a:b", "x.y", " a", "\n"]
    + ["\udce9"] * (sys.platform == "linux")
)
SUFFIXES = st.sampled_from([".mp4", ".MOV", ".txt", ".TXT", ".mp4.txt", ".mts", ".png", ".pdf", ""])
FOLDERS = st.sampled_from(["", "sub", "sub/deep", "train", "link", "out"])
CELLS = st.none() | st.sampled_from(["", "x", "a.mp4", "sub/a.MOV", "../a.mp4", "nan", "\ud800"]) | st.integers(0, 2)
CELLS |= st.floats() | st.booleans() | st.lists(st.text(max_size=3), max_size=2)
TABLE_ROWS = st.fixed_dictionaries({}, optional={c: CELLS for c in ("file_name", "caption", "text", "group", "end")})


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(FOLDERS, NAMES, SUFFIXES), max_size=10),
    st.lists(TABLE_ROWS, max_size=6),
    st.sampled_from([None, "metadata.jsonl", "train/metadata.jsonl", "set.jsonl"]),
)
def test_every_row_and_every_file_is_accounted_for(files, rows, table):
    with tempfile.TemporaryDirectory() as above:
        folder = Path(above).resolve() / "clips"
        for name in ("clips/sub/deep", "clips/train", "outside"):
            (folder.parent / name).mkdir(parents=True)
        (folder / "link").symlink_to("sub")
        (folder / "out").symlink_to("../outside")
        for name in ["good.mp4", "good.txt", *(f"{where}/{name}{suffix}" for where, name, suffix in files)]:
            (folder / name.lstrip("/")).write_text("x")
        rows = [*rows, {"file_name": "../good.mp4", "caption": "x"}, {"file_name": "good.mp4", "caption": "x"}]
        (folder / "train" / "good.mp4").write_text("x")
        if table is not None:
            write_jsonl(folder / table, rows)
        sources = read_sources(folder)

        by_name = [bad for bad in sources.quarantined if "name is not UTF-8" in bad.reason]
        num_rows = len(rows) if table else sum(is_media(name) and is_utf8(name) for name in names_in(folder))
        assert len(sources.videos) + len(sources.quarantined) - len(by_name) == num_rows
        rejected = {bad.video for bad in sources.quarantined}
        left_alone = [name for names in sources.skipped.values() for name in names]
        used = {video.path for video in sources.videos} | {(folder / name).resolve() for name in rejected}
        read = {table} if table else {name for name in names_in(folder) if name.lower().endswith(".txt")}
        for name in names_in(folder):
            is_named = (folder / name).resolve() in used or printable(name) in rejected
            places = [is_named, name in sources.unlisted, printable(name) in left_alone]
            assert places.count(True) == 1 or (name in read and places.count(True) == 0), (name, places)
        assert sources.skipped["links to folders outside of the source"] == ("out",)


def names_in(folder):
    """Every file below a folder by its own name, links to folders not followed."""
    return [os.path.relpath(os.path.join(above, file), folder) for above, _, files in os.walk(folder) for file in files]
