from pathlib import Path

import pytest

from vidlit.data.split import Fold, Splitting, split_by_video, spread_over_videos
from vidlit.errors import UserError
from vidlit.video.buckets import Bucket
from vidlit.video.sources import Clip, SourceVideo


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
    split = split_by_video(clips, Splitting(0.2, 0.1), seed=0)
    assert not groups(split.train) & groups(split.val)
    assert not groups(split.train) & groups(split.test)
    assert not groups(split.val) & groups(split.test)
    assert sorted(c.clip_id for side in split for c in side) == sorted(c.clip_id for c in clips)
    assert len(groups(split.val)) == max(1, round(0.2 * num_groups))
    assert len(groups(split.test)) == max(1, round(0.1 * num_groups))


def test_a_function_of_seed_and_groups_alone():
    clips = clips_of(20)
    first = split_by_video(clips, Splitting(0.25, 0.0), seed=0)
    assert split_by_video(clips[::-1], Splitting(0.25, 0.0), seed=0).val == first.val[::-1]
    assert groups(split_by_video(clips, Splitting(0.25, 0.0), seed=1).val) != groups(first.val)


def test_adding_a_video_moves_few_others():
    before = groups(split_by_video(clips_of(40), Splitting(0.25, 0.0), seed=0).val)
    after = groups(split_by_video(clips_of(41), Splitting(0.25, 0.0), seed=0).val)
    assert len(before - after) <= 1


@pytest.mark.parametrize(("num_groups", "test_fraction"), [(1, 0.1), (2, 0.1)])
def test_too_few_source_videos_says_what_to_do(num_groups, test_fraction):
    with pytest.raises(UserError, match=r"recording.*Add clips of other videos.*group"):
        split_by_video(clips_of(num_groups), Splitting(0.2, test_fraction), seed=0)


@pytest.mark.parametrize(("num_groups", "val_fraction"), [(1, 0.2), (5, 0.0)])
def test_one_video_alone_or_a_fraction_of_zero_holds_nothing_out(num_groups, val_fraction):
    split = split_by_video(clips_of(num_groups), Splitting(val_fraction, 0.0), seed=0)
    assert len(split.train) == 3 * num_groups
    assert not split.val
    assert not split.test


@pytest.mark.parametrize("test_fraction", [0.0, 0.1])
def test_folds_hold_out_every_video_once_and_leave_the_test_alone(test_fraction):
    clips = clips_of(11)
    without = split_by_video(clips, Splitting(0.2, test_fraction), seed=0)
    splits = [split_by_video(clips, Splitting(0.2, test_fraction, Fold(number, 3)), 0) for number in range(3)]
    held_out = [group for split in splits for group in groups(split.val)]
    assert len(held_out) == len(set(held_out))
    assert set(held_out) == groups(clips) - groups(without.test)
    assert max(len(groups(split.val)) for split in splits) - min(len(groups(split.val)) for split in splits) <= 1
    for split in splits:
        assert split.test == without.test
        assert not groups(split.train) & (groups(split.val) | groups(split.test))


@pytest.mark.parametrize(("number", "of"), [(3, 3), (-1, 3), (0, 1)])
def test_a_fold_that_is_none(number, of):
    with pytest.raises(UserError, match=f"fold {number} of {of}"):
        Fold(number, of)


def test_more_folds_than_videos():
    with pytest.raises(UserError, match="4 recordings cannot be divided into 5 folds"):
        split_by_video(clips_of(4), Splitting(fold=Fold(0, 5)), 0)


def test_what_was_held_out_can_be_trained_on_and_the_test_stays():
    clips = clips_of(10)
    before = split_by_video(clips, Splitting(0.2, 0.1), seed=0)
    after = split_by_video(clips, Splitting(0.2, 0.1, train_on_val=True), seed=0)
    assert after.test == before.test
    assert not after.val
    assert groups(after.train) == groups(before.train) | groups(before.val)


@pytest.mark.parametrize(("val", "test"), [(-0.1, 0.0), (1.0, 0.0), (0.6, 0.5), (0.2, -0.1)])
def test_fractions_out_of_range(val, test):
    with pytest.raises(UserError, match="val_fraction"):
        Splitting(val, test)


def test_train_eval_is_of_training_clips_spread_over_videos():
    train = clips_of(5, each=4)
    train_eval = spread_over_videos(train, 7, seed=0)
    assert len({clip.clip_id for clip in train_eval}) == 7
    assert groups(train_eval) == groups(train)
    counts = [sum(clip.source.group == group for clip in train_eval) for group in groups(train)]
    assert max(counts) - min(counts) <= 1
    assert len(spread_over_videos(train, 100, seed=0)) == 20
