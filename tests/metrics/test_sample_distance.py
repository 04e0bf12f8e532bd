import math

import pytest
import torch
from scipy.spatial.distance import cosine

from vidlit.metrics.sample_distance import alikeness, coarse, distance, nearest_others


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_blocks_are_averaged():
    videos = random(2, 3, 4, 16, 24)
    small = coarse(videos)
    assert small.shape == (2, 3, 4, 2, 3)
    torch.testing.assert_close(small[1, 2, 3, 1, 2], videos[1, 2, 3, 8:16, 16:24].mean())
    assert coarse(random(1, 3, 1, 4, 4).bfloat16()).shape == (1, 3, 1, 1, 1)


def test_distance_is_the_root_mean_square():
    left, right = random(3, 3, 2, 4, 4), random(3, 3, 2, 4, 4, seed=1)
    torch.testing.assert_close(distance(left, right)[1], (left[1] - right[1]).square().mean().sqrt())
    assert distance(left, left).tolist() == [0, 0, 0]


def test_only_other_recordings_count():
    clips = [torch.full((3, 2, 2, 2), value) for value in (0.0, 0.1, 1.0, 3.0)]
    found = nearest_others(clips, ["a", "a", "b", "c"])
    torch.testing.assert_close(found, torch.tensor([1.0, 0.9, 0.9, 2.0]))
    assert nearest_others(clips[:2], ["a", "a"]).tolist() == [math.inf, math.inf]


def test_clips_of_other_sizes_are_resampled():
    clips = [torch.full((3, 2, 2, 2), 0.25), torch.full((3, 5, 4, 6), 0.75)]
    torch.testing.assert_close(nearest_others(clips, ["a", "b"]), torch.tensor([0.5, 0.5]))


def test_alikeness_is_the_mean_cosine_of_what_differs_from_the_mean():
    videos, mean = [random(4, 2, 3, 3, seed=k) for k in range(3)], random(4, 2, 3, 3, seed=9)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [1 - cosine((videos[i] - mean).flatten(), (videos[j] - mean).flatten()) for i, j in pairs]
    assert alikeness(videos, [mean] * 3, ["a", "b", "c"]) == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert alikeness(videos, [mean] * 3, ["a", "a", "b"]) == pytest.approx(sum(expected[1:]) / 2, abs=1e-5)
    assert alikeness([videos[0]] * 3, [mean] * 3, ["a", "b", "c"]) == pytest.approx(1)


def test_videos_of_different_sizes_are_not_compared():
    videos = [random(4, 2, 3, 3), random(4, 2, 3, 5), random(4, 2, 3, 3, seed=1)]
    means = [torch.zeros_like(video) for video in videos]
    assert alikeness(videos, means, ["a", "b", "c"]) == pytest.approx(alikeness(videos[::2], means[::2], ["a", "c"]))
    assert math.isnan(alikeness(videos[:2], means[:2], ["a", "b"]))
