"""Masks of rows: found beside their videos, looked at before anything is decoded."""

import csv

import numpy as np
import pytest
from PIL import Image

from vidlit.video.buckets import Bucket
from vidlit.video.cut import plan_clips
from vidlit.video.mp4 import write_mp4
from vidlit.video.sources import read_sources

SIZE = (32, 48)


def write_image(path, width, height):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((height, width), 255, np.uint8)).save(path)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for number, name in enumerate(("a", "b")):
        write_mp4(folder / f"{name}.mp4", np.full((9, *SIZE, 3), 40 + 60 * number, np.uint8), 8.0)
    return folder


def table(folder, rows):
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", "mask"), *rows])
    return folder


@pytest.fixture
def clips(films, tmp_path):
    for path in films.glob("*.mp4"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_table_names_masks_as_it_names_videos(clips):
    write_image(clips / "masks/a.png", 48, 32)
    plan = plan_clips(table(clips, [("a.mp4", "one", "masks/a.png"), ("b.mp4", "two", "")]), [Bucket(5, 32, 48)], 8.0)
    first, second = (clip for clip in plan.clips if clip.start == 0)
    assert first.source.mask == "masks/a.png"
    assert len(first.mask_content) == 64
    request = first.mask_request()
    assert (request.path, request.num_frames, request.height, request.width) == (clips / "masks/a.png", 1, 32, 48)
    assert second.mask_content is None
    assert second.mask_request() is None
    assert plan.unlisted == ()


def test_a_mask_that_is_a_video_is_cut_as_its_clip(clips):
    (clips / "mask.mp4").write_bytes((clips / "b.mp4").read_bytes())
    plan = plan_clips(table(clips, [("a.mp4", "one", "mask.mp4")]), [Bucket(5, 32, 32)], 8.0, "uniform")
    (clip,) = plan.clips
    assert clip.mask_request() == clip.request().__class__(clips / "mask.mp4", clip.start, 5, 8.0, 32, 32)
    assert plan.unlisted == ("b.mp4",)


def test_a_mask_lies_beside_a_video_with_a_caption_file(clips):
    (clips / "a.txt").write_text("one")
    (clips / "b.txt").write_text("two")
    write_image(clips / "a.mask.png", 48, 32)
    sources = read_sources(clips)
    assert {video.video: video.mask for video in sources.videos} == {"a.mp4": "a.mask.png", "b.mp4": None}
    assert (sources.quarantined, sources.unlisted) == ((), ())


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        ("none.png", "its mask none.png does not exist"),
        ("../x.png", "its mask ../x.png leads out of the folder"),
        ("/x.png", "its mask /x.png is an absolute path"),
        ("broken.png", "its mask broken.png cannot be decoded"),
        ("tall.png", "its mask tall.png has another shape: 48x64 pixels, its video 48x32"),
    ],
)
def test_a_mask_that_cannot_be_used_costs_its_own_row(clips, mask, reason):
    (clips / "broken.png").write_bytes(b"no image")
    write_image(clips / "tall.png", 48, 64)
    plan = plan_clips(table(clips, [("a.mp4", "one", mask), ("b.mp4", "two", "")]), [Bucket(5, 32, 48)], 8.0)
    assert {clip.source.video for clip in plan.clips} == {"b.mp4"}
    (bad,) = plan.quarantined
    assert bad.video == "a.mp4"
    assert bad.reason.startswith(reason)


def test_a_mask_may_be_smaller_than_its_video(clips):
    write_image(clips / "small.png", 24, 16)
    plan = plan_clips(table(clips, [("a.mp4", "one", "small.png")]), [Bucket(5, 32, 48)], 8.0)
    assert not plan.quarantined
