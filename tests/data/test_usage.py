"""Every row and every clip is used, dropped or quarantined, and three commands say so in the same words."""

import csv
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.video.films import hostile_files, texture, write_film
from vidlit.commands.plan import print_plan
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.usage import LeftOut, Usage, as_csv, count_words, left_out, read_left_out
from vidlit.errors import UserError
from vidlit.forecast.run_plan import make_plan
from vidlit.latents.encoding import Encoding
from vidlit.runs.directory import write_text
from vidlit.video.buckets import Bucket
from vidlit.video.cut import plan_clips
from vidlit.video.isolation import IsolatedReader
from vidlit.video.sources import Rejected

ALONE = {"accelerator": "cpu", "devices": 1}
BUCKETS = ["9x32x32"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A folder of films, and of what is none; rows of it are drawn by the tests."""
    folder = tmp_path_factory.mktemp("media")
    for number in range(3):
        write_film(folder / f"good{number}.mp4", texture(number, count=60))
    write_film(folder / "short.mp4", texture(5, count=3))
    for name, content in hostile_files(folder / "good0.mp4").items():
        (folder / name).write_bytes(content)
    whole = (folder / "good1.mp4").read_bytes()
    (folder / "cut_short.mp4").write_bytes(whole[: len(whole) // 3])
    outside = tmp_path_factory.mktemp("outside") / "film.mp4"
    outside.write_bytes(whole)
    os.symlink(outside, folder / "link.mp4")
    return folder


def write_table(folder, rows):
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", "start"), *rows])


GOOD = ["good0.mp4", "good1.mp4", "good2.mp4"]
BAD = ["short.mp4", "empty.mp4", "script.mp4", "concat.mp4", "cut_short.mp4", "link.mp4", "absent.mp4", ""]
ROWS = st.lists(
    st.tuples(st.sampled_from(GOOD + BAD), st.sampled_from(["a", "b", ""]), st.sampled_from(["", "0.2", "99"])),
    min_size=1,
    max_size=8,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS)
def test_rows_add_up(media, tmp_path, rows):
    write_table(media, [("good0.mp4", "always", ""), *rows])
    plan = plan_clips(media, [Bucket(9, 32, 32)], 8.0, cache=tmp_path / "files.json")
    counts = Usage.of(plan, {}).counts()
    assert sum(counts["rows"].values()) == 1 + sum(any(row) for row in rows)  # a line of commas is a blank one
    assert counts["clips"] == {"used": len(plan.clips), "quarantined": 0}
    named = {name for name, *_ in rows} | {"good0.mp4"}
    assert sum(counts["files"].values()) == len({path.name for path in media.glob("*.mp4")} - named)


def test_what_encoding_cannot_read_is_counted_by_plan_encode_and_fit(media, tmp_path, demo, capsys, monkeypatch):
    rows = [*((name, "a", "") for name in GOOD), ("good0.mp4", "a", ""), *((name, "a", "") for name in BAD)]
    write_table(media, rows)
    data = LatentDataModule(
        media, tmp_path / "store", str(demo.dir / "base"), BUCKETS, fps=8, encoding=Encoding(num_workers=0)
    )
    num_clips = len(data.plan.clips)
    lost = [clip.clip_id for clip in data.plan.clips if clip.source.video == "good2.mp4"]
    lost += [next(clip.clip_id for clip in data.plan.clips if clip.source.video == "good1.mp4")]

    read_clip = IsolatedReader.read_clip

    def broken(reader, request):
        clip = next(c for c in data.plan.clips if (c.source.path, c.start) == (request.path, request.start))
        if clip.clip_id in lost:
            raise UserError("is broken in the middle")
        return read_clip(reader, request)

    monkeypatch.setattr(IsolatedReader, "read_clip", broken)
    report = data.encode(**ALONE)
    assert report.encoded + len(report.quarantined) == num_clips
    counts = data.usage.counts()
    assert counts["rows"]["used"] == 2
    assert counts["rows"]["dropped"] == 2  # too short, and one that repeats another
    assert sum(counts["rows"].values()) == len(rows)
    assert counts["clips"] == {"used": num_clips - len(lost), "quarantined": len(lost)}
    assert sum(map(len, data.split)) == counts["clips"]["used"]
    said = count_words(counts)
    assert data.usage.lines()[0] == said
    assert any(line.startswith("quarantined: ") and line.endswith(" more") for line in data.usage.lines())
    plan = make_plan(data, max_steps=5, num_replicas=1, accumulate=1, learning_rate=1e-4)
    print_plan(plan)
    assert said in capsys.readouterr().out
    assert set(lost) <= {row["video"] for row in plan.quarantined}


def test_what_is_left_out_is_written_and_read_again(tmp_path):
    usage = Usage(
        rows=1,
        clips=1,
        dropped=[Rejected("a, b.mp4", "fits no bucket")],
        quarantined=[Rejected("\udcff.mp4", 'its name is no UTF-8, "so"\nit says')],
        in_no_row={".txt files": ["notes.txt"]},
    )
    path = tmp_path / "left_out.csv"
    write_text(path, as_csv(left_out(usage), LeftOut))
    assert read_left_out(path) == [
        LeftOut("\\xff.mp4", "quarantined", 'its name is no UTF-8, "so"\nit says'),
        LeftOut("a, b.mp4", "dropped", "fits no bucket"),
        LeftOut("notes.txt", "in no row", ".txt files"),
    ]
    assert read_left_out(tmp_path / "nothing.csv") == []
    assert len(left_out(usage, most=2)) == 2
