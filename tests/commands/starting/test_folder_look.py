"""Buckets for clips of many kinds; the folder itself is looked at in ``tests/commands/test_init.py``."""

import time

import pytest

from vidlit.commands.starting.folder_look import SeenClip, look_at, suited_buckets
from vidlit.data.demo_folder import Demo
from vidlit.errors import UserError
from vidlit.video.buckets import Bucket, nearest_bucket

SHIPPED = [Bucket.parse(text) for text in ("25x512x768", "49x512x768", "97x512x768", "49x768x512")]


def clips(*kinds):
    """(number, width, height, seconds) each."""
    return [SeenClip(height, width, seconds, 25.0, False) for n, width, height, seconds in kinds for _ in range(n)]


def buckets(*kinds):
    return [str(bucket) for bucket in suited_buckets(clips(*kinds), SHIPPED, 25.0, (8, 32))]


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([(10, 1536, 1024, 6.0)], ["97x512x768"]),  # the size it was trained at
        ([(10, 1024, 1536, 2.0)], ["49x768x512"]),
        ([(10, 1920, 1080, 6.0)], ["97x448x800"]),  # another shape of the same area
        ([(5, 1920, 1080, 6.0), (5, 1080, 1920, 1.5)], ["25x832x448", "97x448x800"]),
        ([(10, 640, 480, 6.0)], ["97x480x640"]),  # smaller than what it was trained at
        ([(10, 1536, 1024, 0.8)], ["17x512x768"]),  # shorter
        ([(10, 1536, 1024, 0.0)], ["1x512x768"]),  # images
        ([(20, 1536, 1024, 6.0), (1, 200, 200, 6.0)], ["97x512x768"]),  # a rare one gets none of its own
        ([(10, 80, 48, 1.1)], ["25x32x64"]),
    ],
)
def test_buckets_suit_the_clips(kinds, expected):
    assert buckets(*kinds) == expected


def test_large_and_small_clips_of_a_shape_get_a_size_each():
    kinds = [(5, 1280, 720, 6.0), (5, 320, 180, 6.0)]
    found = suited_buckets(clips(*kinds), SHIPPED, 25.0, (8, 32))
    chosen = [nearest_bucket(clip.num_frames(25.0), clip.height, clip.width, found) for clip in clips(*kinds)]
    assert {bucket.height * bucket.width > 300_000 for bucket in chosen[:5]} == {True}
    assert {bucket.height for bucket in chosen[5:]} <= {128, 160}


def test_clips_that_no_bucket_takes_are_an_error():
    with pytest.raises(UserError, match="32 pixels a side and 9 frames at 25 a second"):
        buckets((3, 20, 20, 6.0))


def test_a_large_folder_is_looked_at_as_quickly(tmp_path):
    demo = Demo(tmp_path, num_videos=1, clips_per_video=1, base=False)
    demo.write()
    clips, name = tmp_path / "clips", "scene_000_take_0.mp4"
    for number in range(5000):
        (clips / f"{number}.mp4").hardlink_to(clips / name)
        (clips / f"{number}.txt").write_text(f"caption {number}")
    for other in ("metadata.csv", name):
        (clips / other).unlink()
    began = time.monotonic()
    look = look_at(str(clips))
    assert time.monotonic() - began < 20
    assert (len(look.sources.videos), len(look.seen)) == (5000, 40)


def test_broken_files_are_counted(tmp_path):
    demo = Demo(tmp_path, num_videos=3, clips_per_video=1, base=False)
    demo.write()
    (tmp_path / "clips" / "scene_000_take_0.mp4").write_bytes(b"no video at all")
    look = look_at(str(tmp_path / "clips"))
    assert len(look.seen) == 2
    assert any("1 cannot be used, such as scene_000_take_0.mp4: is not a video" in line for line in look.lines())
