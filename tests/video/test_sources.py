import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlit.errors import UserError
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


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("metadata.csv", write_csv), ("metadata.jsonl", write_jsonl), ("metadata.parquet", write_parquet)],
)
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
        ({"file_name": "a.mp4", "caption": "x", "end": "nan"}, "from 0 up"),
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
