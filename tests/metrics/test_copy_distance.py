import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from vidlit.metrics.copy_distance import CopyDistance, copy_ratio, nearest_train, take_distances

GENERATOR = np.random.default_rng(0)
TRAIN = torch.from_numpy(GENERATOR.standard_normal((20, 5))).float()
GROUPS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 5, 5, 5, 5, 6, 6, 7, 7, 8, 8])
MADE = torch.from_numpy(GENERATOR.standard_normal((9, 5))).float()


def by_loop(made, train, groups):
    distance, between = cdist(made, train), cdist(train, train)
    ratios, clips = [], []
    for row in range(len(made)):
        nearest = min(range(len(train)), key=lambda k: distance[row, k])
        d2 = min(distance[row, k] for k in range(len(train)) if groups[k] != groups[nearest])
        siblings = [k for k in range(len(train)) if groups[k] == groups[nearest] and k != nearest]
        take = min((between[nearest, k] for k in siblings), default=math.inf)
        take = 7 * d2 / 9 if math.isinf(take) else min(max(take, d2 / 3), d2)
        ratios.append(distance[row, nearest] / take)
        clips.append(nearest)
    return torch.tensor(ratios).float(), clips


def test_ratio_and_clip_against_a_loop():
    ratio, clip = nearest_train(MADE, TRAIN, GROUPS)
    expected, clips = by_loop(MADE.numpy(), TRAIN.numpy(), GROUPS.tolist())
    torch.testing.assert_close(ratio, expected)
    assert clip.tolist() == clips


def ratio_of(made, train, groups):
    return nearest_train(torch.tensor([[made]]), torch.tensor(train)[:, None], torch.tensor(groups)).ratio.item()


def test_other_takes_of_the_copied_video_do_not_hide_a_copy():
    """Against all clips it would be half as far from one as from the other."""
    assert ratio_of(0.001, [0.0, 0.003, 5.0], [0, 0, 1]) == pytest.approx(0.001 / (4.999 / 3), rel=1e-4)


def test_a_new_take_is_as_far_as_takes_are():
    assert ratio_of(-3.0, [0.0, 3.0, 5.0], [0, 0, 1]) == pytest.approx(3 / 3)
    assert ratio_of(-3.0, [0.0, 4.5, 5.0], [0, 0, 1]) == pytest.approx(3 / 4.5)
    assert ratio_of(-3.0, [0.0, 7.0, 5.0], [0, 0, 1]) == pytest.approx(3 / 7)
    assert ratio_of(-3.0, [0.0, 9.0, 5.0], [0, 0, 1]) == pytest.approx(3 / 8)  # another video is nearer than the take
    assert ratio_of(-3.0, [0.0, 5.0], [0, 1]) == pytest.approx(3 / (8 * 7 / 9))  # no other take


def test_an_exact_copy_is_zero_and_a_tiny_distance_keeps_its_digits():
    """Far from the origin, where the fast form of the distance loses everything below 0.1."""
    train = TRAIN + 1000
    assert nearest_train(train[:3], train, GROUPS).ratio.tolist() == [0, 0, 0]
    near = train[:1].clone()
    near[0, 0] += 0.001
    expected, _ = by_loop(near.double().numpy(), train.double().numpy(), GROUPS.tolist())
    assert nearest_train(near, train, GROUPS).ratio.item() == pytest.approx(expected.item(), rel=1e-4)


def test_one_source_video_or_no_distance_at_all_gives_nan():
    assert nearest_train(MADE, TRAIN, torch.zeros(20, dtype=torch.int64)).ratio.isnan().all()
    assert nearest_train(torch.zeros(2, 3), torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])).ratio.isnan().all()


def test_takes_against_a_loop():
    between = cdist(TRAIN.numpy(), TRAIN.numpy())
    expected = [
        min((between[k, j] for j in range(20) if GROUPS[j] == GROUPS[k] and j != k), default=math.inf)
        for k in range(20)
    ]
    assert math.isinf(expected[5])
    torch.testing.assert_close(take_distances(TRAIN, GROUPS), torch.tensor(expected).float())
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(take_distances(TRAIN[order], GROUPS[order]), torch.tensor(expected).float()[order])


def test_a_copy_must_be_one_in_both_and_what_has_no_meaning_is_passed_over():
    content, motion = torch.tensor([0.1, 0.1, 0.9, 0.2, math.nan]), torch.tensor([0.2, 0.9, 0.1, math.nan, math.nan])
    ratio = copy_ratio(content, motion)
    torch.testing.assert_close(ratio[:4], torch.tensor([0.2, 0.9, 0.9, 0.2]))
    assert ratio[4].isnan()


@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4, 5, 6, 7, 8]], [[8], [3, 1], [0, 2, 7], [4, 5, 6]]])
def test_metric_is_the_function_for_any_batches_and_order(batches):
    metric = CopyDistance(TRAIN, GROUPS)
    for rows in batches:
        metric.update(torch.tensor(rows), MADE[rows])
    ratio, clip = metric.compute()
    expected = nearest_train(MADE, TRAIN, GROUPS)
    torch.testing.assert_close(ratio, expected.ratio)
    assert torch.equal(clip, expected.clip)
    metric.reset()
    metric.update(torch.tensor([5, 4]), MADE[:2])
    assert metric.compute().clip.tolist() == expected.clip[:2].flip(0).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single(dtype):
    made, train = MADE.to(dtype), TRAIN.to(dtype)
    metric = CopyDistance(train, GROUPS)
    metric.update(torch.arange(9), made)
    ratio, clip = metric.compute()
    expected, clips = by_loop(made.double().numpy(), train.double().numpy(), GROUPS.tolist())
    torch.testing.assert_close(ratio, expected)
    assert clip.tolist() == clips


def _rank_of_three(rank, port, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    metric = CopyDistance(TRAIN, GROUPS)
    for rows in [[[0, 3], [6]], [], [[8, 7, 5, 4, 2, 1]]][rank]:  # the second rank has nothing
        metric.update(torch.tensor(rows), MADE[rows])
    torch.save(tuple(metric.compute()), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_three_ranks_one_of_them_idle_hold_what_one_would(tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.start_processes(_rank_of_three, (port, tmp_path), nprocs=3, start_method="fork")
    expected = nearest_train(MADE, TRAIN, GROUPS)
    for rank in range(3):
        ratio, clip = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(ratio, expected.ratio)
        assert torch.equal(clip, expected.clip)
