"""Masks and references of rows: found beside their videos, looked at before anything is decoded."""

import csv
import dataclasses

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


def table(folder, rows, what="mask"):
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "caption", what), *rows])
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
    assert first.source.mask.name == "masks/a.png"
    assert len(first.source.mask.content) == 64
    request = first.mask_request()
    assert (request.path, request.num_frames, request.height, request.width) == (clips / "masks/a.png", 1, 32, 48)
    assert second.source.mask is None
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
    assert {video.video: video.mask and video.mask.name for video in sources.videos} == {
        "a.mp4": "a.mask.png",
        "b.mp4": None,
    }
    assert (sources.quarantined, sources.unlisted) == ((), ())


@pytest.mark.parametrize("what", ["mask", "reference"])
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("none.png", "none.png does not exist"),
        ("../x.png", "../x.png leads out of the folder"),
        ("/x.png", "/x.png is an absolute path"),
        ("broken.png", "broken.png cannot be decoded"),
        ("tall.png", "tall.png has another shape: 48x64 pixels, its video 48x32"),
    ],
)
def test_what_cannot_be_used_costs_its_own_row(clips, what, name, reason):
    (clips / "broken.png").write_bytes(b"no image")
    write_image(clips / "tall.png", 48, 64)
    write_image(clips / "good.png", 48, 32)
    folder = table(clips, [("a.mp4", "one", name), ("b.mp4", "two", "good.png")], what)
    plan = plan_clips(folder, [Bucket(5, 32, 48)], 8.0, with_references=what == "reference")
    assert {clip.source.video for clip in plan.clips} == {"b.mp4"}
    (bad,) = plan.quarantined
    assert bad.video == "a.mp4"
    assert bad.reason.startswith(f"its {what} {reason}")


def test_a_mask_may_be_smaller_than_its_video(clips):
    write_image(clips / "small.png", 24, 16)
    plan = plan_clips(table(clips, [("a.mp4", "one", "small.png")]), [Bucket(5, 32, 48)], 8.0)
    assert not plan.quarantined


def plan_of(folder, **options):
    return plan_clips(folder, [Bucket(5, 32, 48)], 8.0, with_references=True, **options)


def test_a_reference_is_a_clip_of_its_own_at_the_same_times(clips):
    (clips / "pose.mp4").write_bytes((clips / "b.mp4").read_bytes())
    plan = plan_of(table(clips, [("a.mp4", "one", "pose.mp4")], "reference"), cutting="uniform")
    (clip,) = plan.clips
    reference = clip.reference()
    assert (reference.request().path, reference.source.caption) == (clips / "pose.mp4", "one")
    assert reference.request() == dataclasses.replace(clip.request(), path=clips / "pose.mp4")
    assert reference.content == clip.source.reference.content != clip.content
    assert reference.clip_id == f"pose.mp4 of {clip.clip_id}"
    assert reference.reference() is None
    assert plan.unlisted == ("b.mp4",)


def test_an_image_is_a_reference_of_one_frame_and_goes_with_a_mask(clips):
    write_image(clips / "face.png", 48, 32)
    write_image(clips / "mask.png", 48, 32)
    with (clips / "metadata.csv").open("w", newline="") as file:
        rows = [("file_name", "caption", "reference", "mask"), ("a.mp4", "one", "face.png", "mask.png")]
        csv.writer(file).writerows(rows)
    (clip,) = plan_of(clips).clips
    assert clip.mask_request().path == clips / "mask.png"
    reference = clip.reference()
    assert reference.bucket == Bucket(1, 32, 48)
    assert reference.mask_request() is None


def test_a_row_without_a_reference_is_left_out_where_one_is_asked_for(clips):
    plan = plan_of(table(clips, [("a.mp4", "one", ""), ("b.mp4", "two", "a.mp4")], "reference"))
    assert {clip.source.video for clip in plan.clips} == {"b.mp4"}
    (bad,) = plan.quarantined
    assert bad.reason == "has no reference, which model.conditions asks for (metadata.csv line 2)"


def test_images_and_videos_are_not_mixed(clips):
    """A batch has references of one length: those of most rows stay."""
    write_image(clips / "face.png", 48, 32)
    rows = [("a.mp4", "one", "face.png"), ("b.mp4", "two", "a.mp4"), ("b.mp4", "three", "face.png")]
    plan = plan_of(table(clips, rows, "reference"))
    assert {clip.source.caption for clip in plan.clips} == {"one", "three"}
    (bad,) = plan.quarantined
    assert bad.reason.startswith("its reference a.mp4 is of another kind than those of most rows, which are images:")
    plan = plan_of(table(clips, rows[:2], "reference"))
    assert {clip.source.caption for clip in plan.clips} == {"two"}, "of as many the videos stay"


def test_one_clip_may_be_made_from_several_references(clips):
    write_image(clips / "face.png", 48, 32)
    write_image(clips / "back.png", 24, 16)
    rows = [("a.mp4", "one", "face.png"), ("a.mp4", "one", "back.png"), ("a.mp4", "one", "back.png")]
    plan = plan_of(table(clips, rows, "reference"))
    assert len({clip.clip_id for clip in plan.clips}) == len(plan.clips) == 2
    assert len(plan.dropped) == 1


def test_references_that_nothing_asks_for_are_told_and_left_alone(clips):
    (clips / "a.txt").write_text("one")
    (clips / "b.txt").write_text("two")
    write_image(clips / "a.reference.png", 48, 32)
    sources = read_sources(clips)
    assert [video.companions for video in sources.videos] == [{}, {}]
    assert sources.notes == ("1 rows name a reference, for which model.conditions does not ask",)
    asked = read_sources(clips, with_references=True)
    assert [(video.video, video.reference.name) for video in asked.videos] == [("a.mp4", "a.reference.png")]
    assert (asked.notes, asked.unlisted) == ((), ())
