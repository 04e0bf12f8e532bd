"""When a run checks where nobody says, and what its checks really cost."""

import csv

import pytest
import torch

from vidlit.__main__ import main
from vidlit.stopping.schedule import CheckSchedule, check_schedule


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture
def unset(quickstart, monkeypatch):
    """The words of a fit without an interval: Lightning's default, as the class has it. Spacings double after 4."""
    monkeypatch.setattr("vidlit.stopping.schedule.MAX_ROWS", 4)

    def words(**options):
        made = quickstart(**{"data__split__val_fraction": 0.67, "data__buckets": "[5x48x48]", **options})
        return [word for word in made if not word.startswith("--trainer.val_check_interval")] + [
            "--trainer.val_check_interval=null"
        ]

    return words


@pytest.mark.parametrize("accumulate", [2, pytest.param(1, marks=pytest.mark.slow)])
def test_a_resumed_run_checks_at_the_same_steps_with_the_same_results(unset, tmp_path, monkeypatch, accumulate):
    """Ended at a doubling and gone on, then between two checks: there its last step was checked, too."""
    monkeypatch.setattr("vidlit.stopping.schedule.FIRST_SHARE", 100.0)  # so that the first spacing is one step
    shared = {"trainer__accumulate_grad_batches": accumulate, "data__batches__size": 1}
    assert main(unset(**shared, trainer__max_steps=26)) == 0
    runs = tmp_path / "runs" / "quickstart"
    whole = {name: column(runs / "0", name) for name in ("val/log_ratio", "train_eval/log_ratio", "val/score")}
    checks = [1, 2, 3, 4, 6, 8, 12, 16, 24, 26]
    assert list(whole["val/log_ratio"]) == [0, *checks] == [0, *CheckSchedule(1).checks(26)]
    assert list(whole["val/score"]) == list(column(runs / "0", "perf/validation_share")) == checks
    state = torch.load(runs / "0" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert state["ValidationSchedule"] == {"first": 1}
    last = f"--ckpt_path={runs / '1' / 'checkpoints' / 'last.ckpt'}"
    for steps, again in ((4, []), (10, [last]), (26, [last])):
        assert main([*unset(**shared, trainer__max_steps=steps), *again]) == 0
    resumed = {name: column(runs / "1", name) for name in whole}
    assert all(values.pop(10) is not None for values in resumed.values())
    assert resumed == whole


@pytest.mark.slow
def test_the_first_spacing_follows_from_counts_and_outlives_another_plan(unset, tmp_path, monkeypatch):
    words = unset(trainer__max_steps=70, model__noise__num_strata=1, data__batches__size=1)
    assert main([*words, "--trainer.limit_val_batches=1.0"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    num_clips = sum(state["DivergenceMonitor"][f"{name}_curves"].shape[1] for name in ("val", "train_eval"))
    expected = check_schedule(1, num_clips)
    assert expected.first > 2
    assert list(column(run, "val/log_ratio")) == [0, *expected.checks(70)]
    more = unset(trainer__max_steps=100, model__noise__num_strata=1, data__batches__size=1)
    monkeypatch.setattr("vidlit.stopping.schedule.FIRST_SHARE", 0.1)  # as if checks had become dearer
    assert check_schedule(1, num_clips).first > expected.first
    assert main([*more, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert list(column(run, "val/log_ratio")) == sorted({0, 70, *expected.checks(100)})  # 70 was the last step once


def test_what_the_user_says_holds(quickstart, tmp_path):
    assert main(quickstart(data__split__max_val_clips=2, model__noise__num_strata=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert list(column(run, "val/log_ratio")) == [0, 4, 8, 12]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert state["DivergenceMonitor"]["val_curves"].shape == (4, 2)
    assert state["DivergenceMonitor"]["val_reference"].shape == (2, 4)
    assert "ValidationSchedule" not in state


def test_a_check_in_the_middle_of_a_step_is_refused(quickstart, capsys):
    """Two checks of one step once ended a run with a traceback."""
    words = quickstart(trainer__accumulate_grad_batches=3, trainer__val_check_interval=4)
    assert main(words) == 2
    assert "set 6" in capsys.readouterr().err
