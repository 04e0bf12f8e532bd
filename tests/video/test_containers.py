"""Every suffix that a source may have is one that can be read: real files of those beside the usual ones."""

import re
from fractions import Fraction
from pathlib import Path

import pytest

from tests.video.films import HEIGHT, WIDTH, number_of, numbered, write_film
from vidlit.video.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, ClipRequest, probe, read_clip

MPEG_OPTIONS = {"g": "15", "bf": "2", "b": "2000000"}
CONTAINERS = {
    ".mts": ("mpegts", "libx264", {"g": "30", "bf": "2"}),
    ".m2ts": ("mpegts", "mpeg2video", MPEG_OPTIONS),
    ".3gp": ("3gp", "libx264", {"g": "30", "bf": "0"}),
    ".3g2": ("3g2", "mpeg4", {"g": "15", "b": "2000000"}),
    ".f4v": ("f4v", "libx264", {"g": "30", "bf": "2"}),
    ".qt": ("mov", "mpeg4", {"g": "15", "b": "2000000"}),
    ".wmv": ("asf", "wmv2", {"g": "15", "b": "2000000"}),
    ".asf": ("asf", "wmv1", {"g": "15", "b": "2000000"}),
    ".mpg": ("mpeg", "mpeg2video", MPEG_OPTIONS),
    ".mpeg": ("mpeg", "mpeg1video", {"g": "15", "b": "2000000"}),
    ".vob": ("vob", "mpeg2video", MPEG_OPTIONS),
    ".flv": ("flv", "libx264", {"g": "30", "bf": "2"}),
    ".ogv": ("ogg", "libvpx", {"g": "30", "deadline": "realtime", "cpu-used": "8", "b": "2000000"}),
    ".mxf": ("mxf", "mpeg2video", MPEG_OPTIONS),
}
USUAL = {".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".ts"}  # test_frames.py has them


def test_every_suffix_is_tried():
    assert VIDEO_SUFFIXES == USUAL | set(CONTAINERS)


def test_the_guide_names_every_suffix():
    page = (Path(__file__).parents[2] / "docs" / "guides" / "datasets.md").read_text()
    named = {f".{word}" for word in re.findall(r"(?<=[` \n])\.(\w+)(?=[` \n])", page)}
    assert named >= VIDEO_SUFFIXES | IMAGE_SUFFIXES


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_frames_and_times_are_exact(tmp_path, suffix):
    container_format, codec, options = CONTAINERS[suffix]
    path = write_film(
        tmp_path / f"a{suffix}",
        [numbered(number) for number in range(100)],
        range(100),
        time_base=Fraction(1, 25),
        codec=codec,
        codec_options=options,
        pix_fmt="yuv420p",
        container_format=container_format,
    )
    assert probe(path).duration == pytest.approx(4.0, abs=0.05)
    for first in (0, 14, 31, 60, 97):
        clip = read_clip(ClipRequest(path, first / 25, 3, 25.0, HEIGHT, WIDTH))
        assert [number_of(frame) for frame in clip] == [first, first + 1, first + 2]
