import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist, pdist

from vidlit.metrics.diversity import Diversity, kernel_bandwidth, rke, subset_bound

POINTS = torch.from_numpy(np.random.default_rng(0).standard_normal((40, 6))).float()


def by_scipy(points, bandwidth):
    kernel = np.exp(-cdist(points, points, "sqeuclidean") / (2 * bandwidth**2))
    return 1 / np.linalg.norm(kernel / len(points), "fro") ** 2


@pytest.mark.parametrize("bandwidth", [0.3, 1.0, 5.0])
def test_rke_against_scipy(bandwidth):
    assert float(rke(POINTS, bandwidth)) == pytest.approx(by_scipy(POINTS.double().numpy(), bandwidth), rel=1e-10)


@pytest.mark.parametrize("modes", [1, 4, 16])
def test_rke_counts_modes(modes):
    centres = 100 * torch.arange(16 // (16 // modes)).repeat_interleave(16 // modes)[:, None].float()
    assert float(rke(centres + 0.001 * torch.arange(16)[:, None], 1.0)) == pytest.approx(modes, rel=1e-3)


def test_bandwidth_against_scipy_and_without_scale():
    assert kernel_bandwidth(POINTS) == pytest.approx(np.median(pdist(POINTS.double().numpy())) / 2, rel=0.01)
    for alike in (torch.ones(5, 3), torch.ones(1, 3)):
        assert kernel_bandwidth(alike) == 0


def test_bound_is_a_quantile_of_subsets():
    bandwidth = kernel_bandwidth(POINTS)
    generator = np.random.default_rng(1)
    picks = [generator.choice(40, 8, replace=False) for _ in range(4000)]
    expected = np.quantile([by_scipy(POINTS.double().numpy()[pick], bandwidth) for pick in picks], 0.05)
    assert subset_bound(POINTS, bandwidth, 8) == pytest.approx(expected, rel=0.02)
    assert subset_bound(POINTS, bandwidth, 8) == subset_bound(POINTS, bandwidth, 8)
    assert subset_bound(POINTS, bandwidth, 99) == pytest.approx(float(rke(POINTS, bandwidth)))


def test_large_sets_are_thinned():
    many = POINTS.repeat(100, 1) + torch.arange(4000)[:, None] * 1e-4
    bandwidth = kernel_bandwidth(many)
    assert bandwidth == pytest.approx(np.median(pdist(many[::3].double().numpy())) / 2, rel=0.05)
    assert 1 < subset_bound(many, bandwidth, 16) < 16


def test_metric_is_the_function_for_any_batches():
    metric = Diversity(6, 1.0)
    for rows in ([0, 1, 2], list(range(3, 40))):
        metric.update(POINTS[rows])
    assert float(metric.compute()) == pytest.approx(float(rke(POINTS, 1.0)), rel=1e-12)
    metric.reset()
    metric.update(POINTS[:1])
    assert float(metric.compute()) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_double(dtype):
    points = POINTS.to(dtype)
    metric = Diversity(6, 1.0)
    metric.update(points)
    assert float(metric.compute()) == pytest.approx(by_scipy(points.double().numpy(), 1.0), rel=1e-6)


def _rank_of_three(rank, port, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=3)
    metric = Diversity(6, 1.0)
    for rows in [[], [list(range(5)), [5]], [list(range(6, 40))]][rank]:  # the first rank has nothing
        metric.update(POINTS[rows])
    torch.save(metric.compute(), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_three_ranks_one_of_them_idle_hold_what_one_would(tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.start_processes(_rank_of_three, (port, tmp_path), nprocs=3, start_method="fork")
    values = [torch.load(tmp_path / f"{rank}.pt") for rank in range(3)]
    assert values[0] == values[1] == values[2]
    assert float(values[0]) == pytest.approx(float(rke(POINTS, 1.0)), rel=1e-12)
