import itertools
import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.video.films import hostile_files, numbered, quadrants, texture, write_film
from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, _offsets, plan_clips
from vidlit.video.frames import read_clip
from vidlit.video.isolation import IsolatedReader

WIDE = Bucket(9, 48, 80)
HEAD = Cutting("head")


def write_rows(folder, rows):
    folder.mkdir(exist_ok=True)
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def plan_of(folder, buckets, fps, cutting=HEAD, **options):
    """Inspects the files of the shared folder once."""
    return plan_clips(folder, buckets, fps, cutting, cache=folder.with_suffix(".json"), **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two films of 2 and 4 seconds, a small one, a short one and a still."""
    folder = tmp_path_factory.mktemp("clips")
    write_film(folder / "short.mp4", texture(1, count=50))
    write_film(folder / "long.mp4", texture(2, count=100))
    write_film(folder / "small.mp4", texture(3, count=50, height=32, width=48))
    write_film(folder / "blink.mp4", texture(4, count=5))
    Image.fromarray(texture(5)[0]).save(folder / "still.png")
    names = ["short.mp4", "long.mp4", "small.mp4", "blink.mp4", "still.png"]
    write_rows(folder, [{"file_name": name, "caption": name} for name in names])
    return folder


def test_head(folder):
    plan = plan_of(folder, [WIDE], 8.0)
    assert [clip.clip_id for clip in plan.clips] == ["long.mp4@0.000-1.125", "short.mp4@0.000-1.125"]
    assert [(s.video, s.used, s.total) for s in plan.shortened] == [
        ("long.mp4", 1.125, pytest.approx(4.0)),
        ("short.mp4", 1.125, pytest.approx(2.0)),
    ]
    assert {bad.video: bad.reason for bad in plan.dropped} == {
        "blink.mp4": "has 2 frames at 8 fps, the shortest bucket (9x48x80) needs 9",
        "small.mp4": "is 48x32 pixels (width x height): smaller than every bucket it is long enough for "
        "(the smallest is 80x48); set data.cutting.upscale to enlarge it",
        "still.png": "is an image, the shortest bucket (9x48x80) needs 9",
    }
    assert not plan.quarantined
    assert plan.clips_per_bucket() == {WIDE: 2}


def test_chunk_reports_the_tail(folder):
    plan = plan_of(folder, [WIDE], 8.0, Cutting("chunk"))
    starts = [clip.start for clip in plan.clips if clip.source.video == "long.mp4"]
    assert starts == [0.0, 1.125, 2.25]
    assert plan.shortened[0].used == 3 * 1.125


def test_every_planned_clip_can_be_read(folder):
    buckets = [WIDE, Bucket(5, 32, 32), Bucket(1, 32, 48)]
    names = {"short.mp4", "long.mp4", "small.mp4", "blink.mp4", "still.png"}
    for mode in ("head", "chunk", "slide", "uniform"):
        plan = plan_of(folder, buckets, 13.0, Cutting(mode))
        assert {clip.source.video for clip in plan.clips} == names
        for clip in plan.clips:
            frames, height, width = clip.bucket
            assert read_clip(clip.request()).shape == (frames, height, width, 3)


def test_slide_uniform_and_limit(folder):
    def starts(mode, **options):
        plan = plan_of(folder, [WIDE], 8.0, Cutting(mode, **options))
        return [clip.start * 8 for clip in plan.clips if clip.source.video == "long.mp4"]

    assert starts("slide") == [0, 4, 8, 12, 16, 20]  # half of nine, rounded to even
    assert starts("slide", overlap=0.0) == starts("chunk") == [0, 9, 18]
    assert starts("uniform") == [0, 12, 23]  # the last clip ends with the film
    assert starts("uniform", max_clips_per_video=1) == [11]
    assert starts("chunk", max_clips_per_video=2) == [0, 9]
    assert starts("slide", max_clips_per_video=2) == [0, 4]


@given(
    available=st.integers(1, 500),
    length=st.integers(1, 100),
    mode=st.sampled_from(["head", "chunk", "slide", "uniform"]),
    limit=st.none() | st.integers(1, 10),
    overlap=st.floats(0, 0.99),
)
def test_offsets_lie_within_the_video(available, length, mode, limit, overlap):
    if length > available:
        return
    offsets = _offsets(available, length, Cutting(mode, limit, overlap))
    assert offsets == sorted(set(offsets))
    assert 1 <= len(offsets) <= (limit or available)
    assert offsets[0] >= 0
    assert offsets[-1] + length <= available
    if mode in ("chunk", "uniform"):
        assert all(b - a >= length for a, b in itertools.pairwise(offsets))


def test_upscale(folder):
    plan = plan_of(folder, [WIDE], 8.0, Cutting("head", upscale=True))
    assert "small.mp4" in {clip.source.video for clip in plan.clips}


def test_images_are_clips_of_one_frame(folder):
    still = Bucket(1, 64, 96)
    plan = plan_clips(folder, [WIDE, still], 8.0, HEAD)
    assert [clip.clip_id for clip in plan.clips if clip.bucket == still] == [
        "blink.mp4@0.000-0.125",
        "still.png@0.000-0.000",
    ]


def test_spans(tmp_path):
    write_film(tmp_path / "a.mp4", [numbered(n) for n in range(100)])
    rows = [
        {"start": 1.0, "end": 2.5},
        {"start_frame": 50, "end_frame": 80},
        {"start": 3.9},
        {"start": 60},
        {"start": 3.0, "end": 600},
    ]
    write_rows(tmp_path, [{"file_name": "a.mp4", "caption": str(i), **row} for i, row in enumerate(rows)])
    plan = plan_clips(tmp_path, [Bucket(9, 32, 32)], 10.0, HEAD)
    assert [(clip.source.caption, clip.start) for clip in plan.clips] == [("0", 1.0), ("1", 2.0), ("4", 3.0)]
    assert [bad.reason for bad in plan.dropped] == [
        "has 1 frame at 10 fps, the shortest bucket (9x32x32) needs 9",
        "its span starts at 60.000 s, the video ends at 4.000 s",
    ]


def test_several_captions_of_one_span_and_repeated_rows(tmp_path):
    write_film(tmp_path / "a.mp4", texture(1, count=50))
    rows = [{"file_name": "a.mp4", "caption": caption} for caption in ("one", "two", "one")]
    write_rows(tmp_path, rows)
    plan = plan_clips(tmp_path, [WIDE], 8.0, HEAD)
    assert sorted(clip.source.caption for clip in plan.clips) == ["one", "two"]
    ids = [clip.clip_id for clip in plan.clips]
    assert len(set(ids)) == 2
    assert all(clip_id.startswith("a.mp4@0.000-1.125#") for clip_id in ids)
    assert [bad.reason for bad in plan.dropped] == ["another row gives the same clip a.mp4@0.000-1.125"]
    write_rows(tmp_path, rows[::-1])
    assert [clip.clip_id for clip in plan_clips(tmp_path, [WIDE], 8.0, HEAD).clips] == ids


def test_the_plan_depends_on_nothing_but_the_files(folder, tmp_path):
    elsewhere = tmp_path / "moved"
    shutil.copytree(folder, elsewhere)
    lines = (elsewhere / "metadata.jsonl").read_text().splitlines()
    random.Random(1).shuffle(lines)
    (elsewhere / "metadata.jsonl").write_text("\n".join(lines))
    first, second = (plan_clips(place, [WIDE], 8.0, Cutting("slide")) for place in (folder, elsewhere))
    assert [(c.clip_id, c.content, c.start, c.bucket, c.source.group) for c in first.clips] == [
        (c.clip_id, c.content, c.start, c.bucket, c.source.group) for c in second.clips
    ]
    assert first.dropped == second.dropped
    assert first.shortened == second.shortened


def test_bad_files_are_quarantined_and_the_rest_goes_on(tmp_path):
    good = write_film(tmp_path / "good.mp4", texture(1, count=50))
    cut = write_film(tmp_path / "cut.mp4", [quadrants()] * 20)
    cut.write_bytes(cut.read_bytes()[:-200])
    bad = hostile_files(good)
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    names = [good.name, cut.name, *bad, "../elsewhere.mp4"]
    write_rows(tmp_path, [{"file_name": name, "caption": "x"} for name in names])
    plan = plan_clips(tmp_path, [WIDE], 8.0, HEAD)
    assert {clip.source.video for clip in plan.clips} == {"good.mp4"}
    assert {rejected.video for rejected in plan.quarantined} == set(names) - {"good.mp4"}
    assert all(rejected.reason for rejected in plan.quarantined)


def test_nothing_usable_is_a_plan_that_says_why(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (tmp_path / "a.txt").write_text("x")
    plan = plan_clips(tmp_path, [WIDE], 8.0, HEAD)
    assert not plan.clips
    assert "not a video" in plan.quarantined[0].reason


class CountingReader(IsolatedReader):
    inspected: list = []  # noqa: RUF012

    def inspect(self, path, fingerprint):
        self.inspected.append(path.name)
        return super().inspect(path, fingerprint)


def test_cache(folder, tmp_path):
    place = tmp_path / "clips"
    shutil.copytree(folder, place)
    cache = tmp_path / "new" / "inspected.json"

    def run(**options):
        CountingReader.inspected.clear()
        progress = []
        plan = plan_clips(
            place,
            [WIDE],
            8.0,
            HEAD,
            cache=cache,
            reader=CountingReader,
            on_progress=lambda *n: progress.append(n),
            **options,
        )
        assert [done for done, _ in progress] == sorted(done for done, _ in progress)
        return plan, sorted(CountingReader.inspected)

    plain, inspected = run(tie_near_duplicates=False)
    assert len(inspected) == 5
    first, inspected = run()  # now with fingerprints
    assert len(inspected) == 5
    assert run() == (first, [])
    assert first.clips == plain.clips
    write_film(place / "short.mp4", texture(9, count=50))
    changed, inspected = run()
    assert inspected == ["short.mp4"]
    assert changed.clips[0] == first.clips[0]
    assert changed.clips[1].content != first.clips[1].content
    cache.write_text("{broken")
    assert run() == (changed, ["blink.mp4", "long.mp4", "short.mp4", "small.mp4", "still.png"])
    kept = {"inspected.json", "repeats.json"}
    assert {path.name for path in cache.parent.iterdir()} == kept | {f".{name}.lock" for name in kept}


def test_near_duplicates_join_groups(tmp_path):
    frames = texture(1, count=50)
    write_film(tmp_path / "a.mp4", frames)
    write_film(tmp_path / "b.mp4", [np.ascontiguousarray(frame[::2, ::2]) for frame in frames])
    shutil.copy(tmp_path / "a.mp4", tmp_path / "c.mp4")
    write_film(tmp_path / "d.mp4", texture(2, count=50))
    write_film(tmp_path / "flat.mp4", [np.zeros((64, 96, 3), np.uint8)] * 50)
    shutil.copy(tmp_path / "flat.mp4", tmp_path / "flat2.mp4")
    groups = {"a.mp4": "zoo", "b.mp4": "bear", "d.mp4": "zoo", "c.mp4": "", "flat.mp4": "", "flat2.mp4": ""}
    write_rows(tmp_path, [{"file_name": v, "caption": "x", "group": g} for v, g in groups.items()])
    plan = plan_of(tmp_path, [Bucket(9, 32, 32)], 8.0)
    assert {clip.source.video: clip.source.group for clip in plan.clips} == {
        "a.mp4": "bear",
        "b.mp4": "bear",
        "c.mp4": "bear",
        "d.mp4": "bear",  # of one group with a.mp4 by its row
        "flat.mp4": "flat.mp4",
        "flat2.mp4": "flat.mp4",
    }
    tied = {(pair.first, pair.second) for pair in plan.near_duplicates}
    assert tied == {("a.mp4", "b.mp4"), ("a.mp4", "c.mp4"), ("flat.mp4", "flat2.mp4")}
    apart = plan_of(tmp_path, [Bucket(9, 32, 32)], 8.0, tie_near_duplicates=False)  # though the cache knows
    tied = {"a.mp4": "c.mp4", "b.mp4": "bear", "c.mp4": "c.mp4", "d.mp4": "c.mp4"}
    tied |= {"flat.mp4": "flat.mp4", "flat2.mp4": "flat.mp4"}  # identical bytes, whatever they show
    assert {clip.source.video: clip.source.group for clip in apart.clips} == tied


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"buckets": []}, "no buckets"),
        ({"fps": 0.0}, "fps"),
        ({"fps": float("nan")}, "fps"),
    ],
)
def test_options_out_of_range(folder, options, message):
    with pytest.raises(UserError, match=message):
        plan_clips(folder, **{"buckets": [WIDE], "fps": 8.0, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "tail"}, "data.cutting.mode 'tail' is none of head, chunk, slide, uniform, scenes"),
        ({"max_clips_per_video": 0}, "data.cutting.max_clips_per_video is 0"),
        ({"overlap": 1.0}, "data.cutting.overlap is 1.0"),
    ],
)
def test_cuttings_out_of_range(options, message):
    with pytest.raises(UserError, match=message):
        Cutting(**options)
