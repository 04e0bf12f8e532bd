import doctest
import importlib
import math
import pkgutil

import pytest
import torch

import vidlit.metrics
from vidlit.metrics.paired_loss import HIGH_SIGMA, HIGH_SIGMA_WEIGHT, PairedLoss, log_ratio

LOSSES = torch.rand(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
ORDERS = [
    [[0, 1, 2, 3, 4, 5, 6]],
    [[6], [2], [0], [1], [5], [4], [3]],
    [[3, 1], [0, 6, 5], [2], [4]],
]


@pytest.mark.parametrize("order", ORDERS)
def test_table_is_the_same_for_any_order_and_batch_size(order):
    metric = PairedLoss(7, 4)
    for rows in order:
        metric.update(torch.tensor(rows), LOSSES[rows].float())
    assert torch.equal(metric.compute(), LOSSES.float().double())


def test_clips_that_were_not_scored_are_nan():
    metric = PairedLoss(3, 2)
    metric.update(torch.tensor([2]), torch.tensor([[1.0, 2.0]]))
    table = metric.compute()
    assert table[2].tolist() == [1.0, 2.0]
    assert table[:2].isnan().all()


def test_a_clip_scored_twice_counts_once():
    """Ranks that pad their last batch score some clips again."""
    metric = PairedLoss(2, 1)
    metric.update(torch.tensor([0, 1, 0]), torch.tensor([[2.0], [3.0], [2.0]]))
    assert metric.compute().flatten().tolist() == [2.0, 3.0]


def test_reset_forgets():
    metric = PairedLoss(2, 1)
    metric.update(torch.tensor([0, 1]), torch.tensor([[2.0], [3.0]]))
    metric.reset()
    metric.update(torch.tensor([0, 1]), torch.tensor([[5.0], [7.0]]))
    assert metric.compute().flatten().tolist() == [5.0, 7.0]


def test_half_precision_losses_are_summed_in_double():
    metric = PairedLoss(7, 4)
    metric.update(torch.arange(7), LOSSES.bfloat16())
    assert metric.compute().dtype == torch.float64
    assert torch.equal(metric.compute(), LOSSES.bfloat16().double())


def _two_ranks(rank, port, folder):
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    metric = PairedLoss(7, 4)
    rows = [[0, 1, 2, 3], [4, 5, 6, 0]][rank]  # clip 0 twice, as padding does
    for row in rows:
        metric.update(torch.tensor([row]), LOSSES[[row]].float())
    torch.save(metric.compute(), folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_hold_the_table_of_one(tmp_path):
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.start_processes(_two_ranks, (port, tmp_path), nprocs=2, start_method="fork")
    for rank in (0, 1):
        assert torch.equal(torch.load(tmp_path / f"{rank}.pt"), LOSSES.float().double())


def test_log_ratio_against_a_loop():
    sigmas = torch.tensor([[0.1, 0.4, 0.69, 0.9]] * 7)
    reference = LOSSES.flip(0)
    result = log_ratio(LOSSES, reference, sigmas)
    for row in range(7):
        weights = [HIGH_SIGMA_WEIGHT if s > HIGH_SIGMA else 1.0 for s in sigmas[row].tolist()]
        logs = [math.log(a / b) for a, b in zip(LOSSES[row].tolist(), reference[row].tolist(), strict=True)]
        expected = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
        assert float(result[row]) == pytest.approx(expected, rel=1e-12)
    assert result.dtype == torch.float64


def test_log_ratio_is_zero_for_the_base_model_and_ignores_loss_weights():
    sigmas = torch.full((7, 4), 0.5)
    assert torch.equal(log_ratio(LOSSES, LOSSES, sigmas), torch.zeros(7, dtype=torch.float64))
    weight = torch.tensor([0.1, 1.0, 3.0, 20.0])
    better = LOSSES * 0.9
    torch.testing.assert_close(log_ratio(better * weight, LOSSES * weight, sigmas), log_ratio(better, LOSSES, sigmas))
    torch.testing.assert_close(log_ratio(better, LOSSES, sigmas), torch.full((7,), math.log(0.9), dtype=torch.float64))


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(vidlit.metrics.__path__)])
def test_docstring_examples_run(name):
    module = importlib.import_module(f"vidlit.metrics.{name}")
    done = doctest.testmod(module)
    assert done.attempted > 0, "every metric shows a runnable example"
    assert done.failed == 0
