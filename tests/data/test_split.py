from pathlib import Path

import pytest

from vidlit.data.buckets import Bucket
from vidlit.data.clips import Clip, SourceVideo
from vidlit.data.split import split_by_video, train_probe
from vidlit.errors import UserError


def clips_of(num_groups, each=3):
    return [
        Clip(
            clip_id=f"g{group:03d}.mp4@{number}",
            source=SourceVideo(Path(f"/v/g{group:03d}.mp4"), f"g{group:03d}.mp4", "a caption", f"g{group:03d}"),
            start=float(number),
            fps=8.0,
            bucket=Bucket(9, 64, 64),
            content="0",
        )
        for group in range(num_groups)
        for number in range(each)
    ]


def groups(clips):
    return {clip.source.group for clip in clips}


@pytest.mark.parametrize("num_groups", [3, 4, 10, 101])
def test_no_group_is_on_two_sides_and_no_clip_is_lost(num_groups):
    clips = clips_of(num_groups)
    split = split_by_video(clips, val_fraction=0.2, test_fraction=0.1, seed=0)
    assert not groups(split.train) & groups(split.val)
    assert not groups(split.train) & groups(split.test)
    assert not groups(split.val) & groups(split.test)
    assert sorted(c.clip_id for side in split for c in side) == sorted(c.clip_id for c in clips)
    assert len(groups(split.val)) == max(1, round(0.2 * num_groups))
    assert len(groups(split.test)) == max(1, round(0.1 * num_groups))


def test_a_function_of_seed_and_groups_alone():
    clips = clips_of(20)
    first = split_by_video(clips, 0.25, 0.0, seed=0)
    assert split_by_video(clips[::-1], 0.25, 0.0, seed=0).val == first.val[::-1]
    assert groups(split_by_video(clips, 0.25, 0.0, seed=1).val) != groups(first.val)


def test_adding_a_video_moves_few_others():
    before = groups(split_by_video(clips_of(40), 0.25, 0.0, seed=0).val)
    after = groups(split_by_video(clips_of(41), 0.25, 0.0, seed=0).val)
    assert len(before - after) <= 1


@pytest.mark.parametrize(("num_groups", "test_fraction"), [(1, 0.0), (2, 0.1)])
def test_too_few_source_videos_says_what_to_do(num_groups, test_fraction):
    with pytest.raises(UserError, match=r"source video.*Add clips of other videos.*group"):
        split_by_video(clips_of(num_groups), 0.2, test_fraction, seed=0)


@pytest.mark.parametrize(("val", "test"), [(0.0, 0.0), (1.0, 0.0), (0.6, 0.5), (0.2, -0.1)])
def test_fractions_out_of_range(val, test):
    with pytest.raises(UserError, match="val_fraction"):
        split_by_video(clips_of(10), val, test, seed=0)


def test_probe_is_of_training_clips_spread_over_videos():
    train = clips_of(5, each=4)
    probe = train_probe(train, 7, seed=0)
    assert len({clip.clip_id for clip in probe}) == 7
    assert groups(probe) == groups(train)
    counts = [sum(clip.source.group == group for clip in probe) for group in groups(train)]
    assert max(counts) - min(counts) <= 1
    assert len(train_probe(train, 100, seed=0)) == 20
