import csv

import pytest

from vidlit.__main__ import main


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_had_ended_logs_at_the_same_steps_when_it_goes_on(quickstart, tmp_path, accumulate):
    options = {
        "trainer__accumulate_grad_batches": accumulate,
        "trainer__val_check_interval": 4 * accumulate,
        "trainer__log_every_n_steps": 2,
    }
    assert main(quickstart(**options, trainer__max_steps=4)) == 0
    assert main([*quickstart(**options, trainer__max_steps=8), "--ckpt_path=last"]) == 0
    with (tmp_path / "runs" / "quickstart" / "0" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows if row["train/loss"]] == [2, 4, 6, 8]
    assert [float(row["step"]) for row in rows if row["perf/data_wait"]] == [2, 4, 6, 8]
