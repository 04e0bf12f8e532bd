"""`vidlit judge`: the stop on curves that other trainers logged."""

import csv
import json
import math

import numpy as np
import pytest

from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.stopping import Stopper
from vidlit.stopping.logged_curves import read_history


def loss(step, turn=900, rise=2e-5):
    return 0.2 - 0.03 * (1 - math.exp(-min(step, turn) / 300)) + rise * max(step - turn, 0)


def write(path, rows, names):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        writer.writerows(rows)
    return path


@pytest.fixture
def log(tmp_path):
    """As Hugging Face's Trainer logs: a training loss every 10 steps, a validation loss every 50."""
    rng = np.random.default_rng(0)
    rows = []
    for step in range(0, 3001, 10):
        train = 0.2 - 0.05 * (1 - math.exp(-step / 800)) + rng.normal(0, 0.004)
        rows.append([step, train, loss(step) + rng.normal(0, 0.0003) if step % 50 == 0 else ""])
    return write(tmp_path / "log.csv", rows, ["global_step", "loss", "eval_loss"])


def test_a_run_that_overfits_would_have_been_stopped(log, capsys):
    assert main(["judge", str(log), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert 900 < told["stop_step"] < 1800
    assert abs(told["best_step"] - 900) <= 150
    assert told["kept"] == pytest.approx(math.log(loss(900) / loss(0)), abs=0.01)
    assert told["lowest"]["step"] == told["best_step"]
    assert told["changes"][-1]["action"] == "stop"
    assert main(["judge", str(log)]) == 0
    text = capsys.readouterr().out
    assert f"Stopped at step {told['stop_step']} of 3000; step {told['best_step']} kept" in text
    assert "Only 1 validation recording" in text


def test_what_it_says_is_what_the_stopper_says(log):
    history, first = read_history(log)
    assert first == 0
    assert history.steps.tolist() == list(range(0, 3001, 50))
    stopper = Stopper(["a"], ["b"])
    for step, val, train in list(zip(history.steps, history.val, history.train_eval, strict=True))[1:30]:
        verdict = stopper.update(step, val, train)
    assert verdict.evidence["case"] in ("learning", "still improving", "plateau", "divergence")


def test_several_recordings_and_no_training_loss(tmp_path, capsys):
    rng = np.random.default_rng(1)
    rows = [[s, *(loss(s) * k + rng.normal(0, 0.0002) for k in (0.9, 1, 1.1, 1.2))] for s in range(0, 3001, 50)]
    path = write(tmp_path / "many.csv", rows, ["step", "a", "b", "c", "d"])
    assert main(["judge", str(path), "--val", "a", "b", "c", "d"]) == 0
    text = capsys.readouterr().out
    assert "There is no training loss" in text
    assert "over 4 recordings" in text
    assert "Stopped at step" in text


def test_a_run_that_still_improves_is_not_stopped(tmp_path, capsys):
    rows = [[s, 0.2 - 0.03 * (1 - math.exp(-s / 3000)), 0.2 - 0.04 * s / 3000] for s in range(100, 3001, 100)]
    path = write(tmp_path / "up.csv", rows, ["Step", "val/loss", "train_loss"])
    assert main(["judge", str(path)]) == 0
    text = capsys.readouterr().out
    assert "step 100, stands for step 0" in text
    assert "Not stopped by step 3000; the best is step 3000" in text


def test_training_losses_between_two_checks_are_averaged(tmp_path):
    rows = [[0, 1.0, 2.0], [5, 3.0, ""], [10, 1.0, 1.0], [10, "", 1.0]]
    history, _ = read_history(write(tmp_path / "t.csv", rows, ["step", "loss", "val_loss"]))
    assert history.train_eval[1, 0] == pytest.approx(math.log(2.0))
    assert history.val[1, 0] == pytest.approx(math.log(0.5))


def test_a_loss_that_is_no_number_any_more_stops(tmp_path, capsys):
    path = write(tmp_path / "nan.csv", [[0, 1.0], [10, 0.9], [20, "nan"], [30, 0.8]], ["step", "val_loss"])
    assert main(["judge", str(path)]) == 0
    assert "Stopped at step 20" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "rows", "words", "told"),
    [
        (["step", "accuracy"], [[0, 1]], [], "name it by --val. Its columns are step, accuracy"),
        (["epoch", "val_loss"], [[0, 1]], [], "name it by --step"),
        (["step", "val_loss"], [[0, 1]], ["--val", "nope"], "no column nope"),
        (["step", "val_loss"], [[0, 1], [1, "low"]], [], "line 3: val_loss is 'low'"),
        (["step", "val_loss"], [["nan", 1]], [], "line 2: step is 'nan'"),
        (["step", "val_loss"], [[-5, 1]], [], "line 2: step is '-5'"),
        (["step", "val_loss"], [], [], "0 rows with a validation loss"),
        (["step", "val_loss"], [[0, 1.0]], [], "1 rows with a validation loss"),
        (["step", "val_loss"], [[0, -1.0], [1, 1.0]], [], "a first loss above 0 is needed"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(tmp_path, capsys, names, rows, words, told):
    path = write(tmp_path / "bad.csv", rows, names)
    assert main(["judge", str(path), *words]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read as a CSV file"):
        read_history(tmp_path / "nowhere.csv")
