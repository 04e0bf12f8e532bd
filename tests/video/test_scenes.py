import importlib.util
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.films import texture, write_film
from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, _cut, plan_clips
from vidlit.video.frames import VideoInfo, probe, read_clip
from vidlit.video.inspection import Inspection
from vidlit.video.scenes import find_cuts, probable_cuts
from vidlit.video.sources import SourceVideo

FPS = 16
LENGTHS = [21, 34, 5, 40]  # frames of scenes
CUTS = [21 / FPS, 55 / FPS, 60 / FPS]
SCENES = Cutting("scenes")


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Four textures with hard cuts at known frames."""
    folder = tmp_path_factory.mktemp("scenes")
    frames = [frame for seed, length in enumerate(LENGTHS, 1) for frame in texture(seed, count=40)[:length]]
    path = write_film(folder / "a.mp4", frames, range(len(frames)), time_base=Fraction(1, FPS), rate=FPS)
    (folder / "a.txt").write_text("four scenes")
    return path


SHOWN = [np.stack(texture(seed, count=40, height=32, width=48))[::4].astype(np.int16) for seed in range(1, 5)]


def scene_of(frame):
    """Which texture a frame is of."""
    return int(np.argmin([np.abs(each - frame).mean(axis=(1, 2, 3)).min() for each in SHOWN]))


def test_cuts_are_found_to_the_frame(film):
    info = probe(film)
    assert find_cuts(film, info.width, info.height) == pytest.approx(CUTS)


def plan_of(film, bucket, fps, cutting=Cutting()):  # noqa: B008 - frozen
    """Inspects the film once."""
    return plan_clips(film.parent, [bucket], fps, cutting, cache=film.parent / "cache" / "files.json")


@pytest.mark.parametrize("fps", [16.0, 12.0])
def test_no_clip_crosses_a_cut(film, fps):
    plan = plan_of(film, Bucket(9, 32, 48), fps, SCENES)
    assert not plan.crossing
    scenes = []
    for clip in plan.clips:
        shown = {scene_of(frame) for frame in read_clip(clip.request())}
        assert len(shown) == 1, clip.clip_id
        scenes += shown
    expected = {16.0: [0, 0, 1, 1, 1, 3, 3, 3, 3], 12.0: [0, 1, 1, 3, 3, 3]}[fps]
    assert scenes == expected
    assert plan.shortened[0].used == pytest.approx(len(expected) * 9 / fps, abs=1e-5)  # the short scene is counted
    assert plan.shortened[0].total == pytest.approx(100 / FPS)


def test_plans_in_other_modes_tell_of_clips_that_cross_a_cut(film):
    plan = plan_of(film, Bucket(9, 32, 48), 16.0)
    crossing = {
        clip.clip_id for clip in plan.clips if len({scene_of(frame) for frame in read_clip(clip.request())}) > 1
    }
    assert set(plan.crossing) <= crossing
    assert plan.crossing  # where hashes lie 0.25 s apart, not every cut is seen


def test_cuts_are_remembered(film, monkeypatch):
    plain = plan_of(film, Bucket(9, 32, 48), 16.0)
    first = plan_of(film, Bucket(9, 32, 48), 16.0, SCENES)
    monkeypatch.setattr("vidlit.video.isolation.IsolatedReader._running", lambda self: pytest.fail("opened a file"))
    assert plan_of(film, Bucket(9, 32, 48), 16.0, SCENES) == first
    assert plan_of(film, Bucket(9, 32, 48), 16.0) == plain


def test_without_the_package_one_line_says_how_to_install_it(film, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "scenedetect" else found(name))
    with pytest.raises(UserError, match=r"pip install 'vidlit\[scenes\]'"):
        plan_clips(film.parent, [Bucket(9, 32, 48)], 16.0, SCENES)


def test_scenes_that_are_all_too_short_are_dropped_with_their_lengths(film):
    plan = plan_of(film, Bucket(49, 32, 48), 16.0, SCENES)
    assert [bad.reason for bad in plan.dropped] == [
        "the longest of its 4 scenes has 40 frames at 16 fps, the shortest bucket (49x32x48) needs 49"
    ]


@settings(max_examples=60, deadline=None)
@given(
    duration=st.floats(0.1, 60),
    cuts=st.lists(st.floats(0, 70), max_size=8),
    span=st.tuples(st.floats(0, 30), st.floats(0, 60)),
    fps=st.sampled_from([8.0, 16.0, 24000 / 1001, 50.0]),
    source_fps=st.sampled_from([0.0, 10.0, 25.0, 60.0]),
    length=st.integers(1, 40),
    limit=st.none() | st.integers(1, 5),
)
def test_clips_lie_within_scenes(duration, cuts, span, fps, source_fps, length, limit, tmp_path_factory):
    cuts = sorted(set(cuts))
    start, end = min(span), max(span)
    row = SourceVideo(tmp_path_factory.getbasetemp(), "a.mp4", "x", "a.mp4", start=start, end=end)
    found = Inspection("", VideoInfo("video", 64, 64, duration, source_fps, 1), cuts=tuple(cuts))
    cut = _cut(row, found, [Bucket(length, 32, 32)], fps, Cutting("scenes", limit))
    if not isinstance(cut, tuple):
        return
    assert 1 <= len(cut[0]) <= (limit or len(cut[0]))
    for clip in cut[0]:
        last = clip.start + (length - 1) / fps
        assert start - 1e-6 <= clip.start
        assert last < min(duration, end) + 1e-3
        for time in (time for time in cuts if time < min(duration, end)):  # at a row's end it is the row's own
            assert not clip.start + 1e-6 < time <= last  # nor is a frame beyond it nearer than half a frame
            assert time <= clip.start + 1e-6 or time - last >= 0.5 / max(fps, source_fps) - 2e-6


def test_jumps_of_hashes_are_cuts_and_restless_scenes_are_not():
    generator = np.random.default_rng(3)
    calm, other = int(generator.integers(0, 2**63)), int(generator.integers(0, 2**63))
    codes = [calm, calm ^ 1, calm, calm ^ 2, other, other ^ 1, other, other ^ 4]
    timeline = [(number / 4, f"{code:016x}") for number, code in enumerate(codes)]
    assert probable_cuts(timeline) == [(0.75, 1.0)]
    restless = [(number / 4, f"{code:016x}") for number, code in enumerate(generator.integers(0, 2**63, 30))]
    assert probable_cuts(restless) == []
    assert probable_cuts([(time * 10, code) for time, code in timeline]) == []  # key frames lie too far apart
    assert probable_cuts([]) == []
