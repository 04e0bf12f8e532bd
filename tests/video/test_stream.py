"""Times of frames: the same numbers whatever the container, and none from a header that lies."""

import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video.films import HEIGHT, WIDTH, number_of, numbered, write_film
from vidlit.video.buckets import Bucket
from vidlit.video.cut import Cutting, _cut
from vidlit.video.frames import VideoError, VideoInfo, frame_times, probe, read_clip
from vidlit.video.inspection import Inspection
from vidlit.video.sources import SourceVideo
from vidlit.video.stream import MOST_SECONDS_OF_A_FRAME

CONTAINERS = {
    "mp4": "libx264",
    "mov": "libx264",
    "mkv": "libx264",
    "ts": "libx264",
    "avi": "libx264",
    "webm": "libvpx",
}
RATES = [Fraction(25), Fraction(30), Fraction(24000, 1001), Fraction(16), Fraction(60), Fraction(125, 10)]


def write(path, pts, rate, *, time_base, num_bframes=0):
    codec = CONTAINERS[path.suffix[1:]]
    x264 = {"qp": "0", "g": "8", "x264-params": f"bframes={num_bframes}:b-adapt=0:scenecut=0"}
    return write_film(
        path,
        [numbered(n) for n in range(len(pts))],
        pts,
        time_base=time_base,
        rate=rate,
        codec=codec,
        pix_fmt="yuv420p",
        codec_options=x264 if codec == "libx264" else {"b": "2000000", "deadline": "realtime", "cpu-used": "8"},
        container_format="mpegts" if path.suffix == ".ts" else None,
    )


def numbers_of_span(path, frame_span, fps):
    """Frames of the one clip that is as long as the span of a row."""
    times, info = frame_times(path), probe(path)
    wanted = {number: float(times[min(number, len(times) - 1)]) for number in frame_span or () if number is not None}
    row = SourceVideo(path, path.name, "x", path.name, frame_span=frame_span)
    for length in range(len(times) * 3, 0, -1):
        cut = _cut(row, Inspection("", info, frame_times=wanted), [Bucket(length, HEIGHT, WIDTH)], fps, Cutting("head"))
        if isinstance(cut, tuple):
            return [number_of(frame) for frame in read_clip(cut[0][0].request())]
    return []


@settings(max_examples=25, deadline=None)
@given(
    container=st.sampled_from(sorted(CONTAINERS)),
    rate=st.sampled_from(RATES),
    count=st.integers(1, 24),
    delay=st.integers(0, 200),
    num_bframes=st.integers(0, 3),
    data=st.data(),
)
def test_frames_are_those_of_their_numbers_in_every_container(
    container, rate, count, delay, num_bframes, data, tmp_path_factory
):
    delay = 0 if container == "avi" else delay  # AVI counts frames, it has no times
    count += 8 * (container == "ts")  # FFmpeg takes less for noise
    path = tmp_path_factory.mktemp("film") / f"a.{container}"
    write(path, [delay + n for n in range(count)], rate, time_base=1 / rate, num_bframes=num_bframes)
    times = frame_times(path)
    np.testing.assert_allclose(times, np.arange(count + 1) / float(rate), atol=2e-3)
    assert numbers_of_span(path, None, float(rate)) == list(range(count))
    first = data.draw(st.integers(0, count - 1))
    last = data.draw(st.integers(first + 1, count + 5) | st.none())
    assert numbers_of_span(path, (first, last), float(rate)) == list(range(first, min(last or count, count)))


@settings(max_examples=15, deadline=None)
@given(
    container=st.sampled_from(["mkv", "mov", "mp4", "ts"]),
    gaps=st.lists(st.integers(20, 700), min_size=3, max_size=20),  # milliseconds
    delay=st.integers(0, 5000),
    fps=st.sampled_from([5.0, 16.0, 24000 / 1001]),
    data=st.data(),
)
def test_spans_in_frames_hold_under_a_variable_frame_rate(container, gaps, delay, fps, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / f"a.{container}"
    gaps = gaps + 8 * [40]  # of fewer packets FFmpeg takes a transport stream for noise
    pts = (delay + np.cumsum([0, *gaps])).tolist()
    write(path, pts, 25, time_base=Fraction(1, 1000))
    np.testing.assert_allclose(frame_times(path)[:-1], (np.array(pts) - delay) / 1000, atol=1e-3)
    first = data.draw(st.integers(0, len(pts) - 2))
    last = data.draw(st.integers(first + 1, len(pts) - 1))
    shown = numbers_of_span(path, (first, last), fps)
    assert all(first <= number < last for number in shown), (shown, first, last)
    assert shown == sorted(shown)
    assert shown[:1] in ([], [first]) or gaps[first] < 1000 / fps


def test_segments_of_a_longer_film_are_as_long_as_they_are(tmp_path):
    """Matroska's tag DURATION tells when a segment ends: 4 s of one that begins at 2 s and lasts for 2."""
    for delay in (0, 32, 64):
        path = write(tmp_path / f"{delay}.mkv", range(delay, delay + 32), 16, time_base=Fraction(1, 16))
        assert probe(path).duration == pytest.approx(2.0, abs=1e-3)
        assert numbers_of_span(path, None, 16.0) == list(range(32))


def patched(path, box, write_at):
    """A copy in which the 32-bit numbers of a box are others: ``{offset after the name: number}``."""
    content = bytearray(path.read_bytes())
    place = content.index(box) + 4
    for offset, number in write_at.items():
        content[place + offset : place + offset + 4] = struct.pack(">I", number)
    copy = path.with_name(f"patched_{box.decode()}.mp4")
    copy.write_bytes(content)
    return copy


def test_durations_of_headers_are_not_believed(tmp_path):
    film = write(tmp_path / "a.mp4", range(20), 25, time_base=Fraction(1, 25))
    for box, offset in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16)):
        info = probe(patched(film, box, {offset: 0xFFFF_FFF0}))
        assert (info.duration, info.num_frames) == (pytest.approx(0.8), 20), box


@settings(max_examples=15, deadline=None)
@given(
    num_frames=st.integers(1, 2**32 - 1),
    ticks=st.integers(0, 2**32 - 1),
    scale=st.integers(1, 2**32 - 1),
)
def test_hostile_times_cost_neither_memory_nor_clips(num_frames, ticks, scale, tmp_path_factory):
    folder = tmp_path_factory.mktemp("film")
    film = write(folder / "a.mp4", range(20), 25, time_base=Fraction(1, 25))
    film = patched(patched(film, b"stts", {8: num_frames, 12: ticks}), b"mdhd", {12: scale})
    try:
        info = probe(film)
    except VideoError:
        return
    assert info.num_frames <= 20
    assert info.duration <= 20 * MOST_SECONDS_OF_A_FRAME
    row = SourceVideo(film, "a.mp4", "x", "a.mp4")
    for mode in ("chunk", "slide", "uniform"):
        cut = _cut(row, Inspection("", info), [Bucket(1, 32, 32)], 24.0, Cutting(mode))
        assert not isinstance(cut, tuple) or len(cut[0]) <= 100_000


def test_a_frame_that_stands_for_hours_is_refused(tmp_path):
    film = write(tmp_path / "a.mp4", [*range(10), 25 * 40_000], 25, time_base=Fraction(1, 25))
    with pytest.raises(VideoError, match=r"nothing new from 0 s to 4e\+04 s: its time stamps are broken"):
        probe(film)


@given(
    duration=st.floats(1e-6, 1e15),
    rounding=st.floats(0, 1),
    rate=st.floats(0, 1000),
    fps=st.floats(0.1, 240),
    length=st.integers(1, 200),
    mode=st.sampled_from(["head", "chunk", "slide", "uniform"]),
    limit=st.none() | st.integers(1, 10),
)
@settings(max_examples=30, deadline=None)
def test_no_header_gives_more_clips_than_a_day_of_film(duration, rounding, rate, fps, length, mode, limit):
    info = VideoInfo("video", 64, 64, duration, rate, 25, rounding)
    row = SourceVideo(Path("a.mp4"), "a.mp4", "x", "a.mp4")
    cut = _cut(row, Inspection("", info), [Bucket(length, 32, 32)], fps, Cutting(mode, limit))
    if isinstance(cut, tuple):
        assert 1 <= len(cut[0]) <= 100_000
    else:
        assert "lower data.cutting.max_clips_per_video" in cut.reason or "the shortest bucket" in cut.reason
