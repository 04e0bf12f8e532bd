import csv

import pytest
from lightning.pytorch import Callback

from vidlit.__main__ import main
from vidlit.commands.fit import train
from vidlit.runs.directory import RunDirectory


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


def test_a_run_that_goes_on_is_running_before_its_first_check(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = RunDirectory(tmp_path / "runs" / "quickstart" / "0")
    assert run.read_summary()["stopped_by"] == "max_steps"
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, *_):
            seen.append(run.read_summary())

    train([*map(str, quickstart(trainer__max_steps=8)), "--ckpt_path=last"], [Look()])
    assert (seen[0]["stopped_by"], seen[0]["reason"]) == ("running", "It goes on from step 4.")
    assert seen[0]["exposures"]  # what was measured is still there
    assert run.read_summary()["stopped_by"] == "max_steps"
