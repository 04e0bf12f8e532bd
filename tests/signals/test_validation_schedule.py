"""How often a run checks where nobody says, and what its checks really cost."""

import csv
import json

import pytest
import torch

from vidlit.__main__ import main
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.stopping.schedule import check_schedule


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture
def unset(quickstart):
    """The words of a fit without an interval: Lightning's default, as the class has it."""

    def words(**options):
        made = quickstart(**options)
        return [word for word in made if not word.startswith("--trainer.val_check_interval")] + [
            "--trainer.val_check_interval=null"
        ]

    return words


@pytest.mark.slow
def test_a_run_that_is_told_nothing_chooses_and_a_resumed_one_keeps_it(unset, tmp_path, monkeypatch):
    kept = []
    setup = DivergenceMonitor.on_validation_epoch_end

    def remember(self, trainer, pl_module):
        kept.append(len(trainer.datamodule.scored_clips))
        return setup(self, trainer, pl_module)

    monkeypatch.setattr(DivergenceMonitor, "on_validation_epoch_end", remember)
    options = {"trainer__max_steps": 34, "trainer__accumulate_grad_batches": 2, "model__noise__num_strata": 1}
    options |= {"data__split__val_fraction": 0.67, "data__buckets": "[5x48x48]", "data__batches__size": 1}
    assert main(unset(**options)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    num_clips = json.loads((run / "summary.json").read_text())["num_clips"]["val"]
    expected = check_schedule(34, 2, num_clips, 1)
    assert expected.num_clips == 8 < num_clips
    steps = list(column(run, "val/log_ratio"))
    assert steps == [0, *range(expected.interval, 35, expected.interval)]
    assert len(steps) > 16
    assert set(kept) == {8}
    shares = column(run, "perf/validation_share")
    assert list(shares) == steps[1:]
    assert all(0 < share < 1 for share in shares.values())
    checkpoint = run / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["callbacks"]["ValidationSchedule"]
    assert state["interval"] == expected.interval

    # With many more steps planned another interval would be chosen: a curve with two would be no curve.
    options["trainer__max_steps"] = 40
    assert check_schedule(400, 2, num_clips, 1).interval != expected.interval
    monkeypatch.setattr(
        "vidlit.signals.validation_schedule.check_schedule", lambda *_: check_schedule(400, 2, num_clips, 1)
    )
    assert main([*unset(**options), f"--ckpt_path={checkpoint}"]) == 0
    assert list(column(run, "val/log_ratio")) == [0, *range(expected.interval, 41, expected.interval)]


def test_what_the_user_says_holds(quickstart, tmp_path):
    assert main(quickstart(data__split__max_val_clips=2)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert list(column(run, "val/log_ratio")) == [0, 4, 8, 12]
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert state["DivergenceMonitor"]["val_curves"].shape == (4, 2)
    assert "ValidationSchedule" not in state


def test_a_check_in_the_middle_of_a_step_is_refused(quickstart, capsys):
    """Two checks of one step once ended a run with a traceback."""
    words = quickstart(trainer__accumulate_grad_batches=3, trainer__val_check_interval=4)
    assert main(words) == 2
    assert "set 6" in capsys.readouterr().err
