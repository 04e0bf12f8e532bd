import csv
import json
import shutil

import pytest

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.commands.kfold import print_folds, summarise_folds
from vidlit.training.module import VideoDiffusionModule


@pytest.mark.slow
def test_each_video_is_held_out_once_and_folds_that_are_over_are_left_out(quickstart, tmp_path, monkeypatch, capsys):
    _, *words = quickstart(trainer__max_steps=4)
    words = ["kfold", "--folds=3", *words]
    step, trained = VideoDiffusionModule.training_step, []

    def training_step(self, batch, batch_idx):
        fold = self.trainer.datamodule.splitting.fold.number
        trained.append(fold)
        if trained.count(1) == 2 and fold == 1:
            next(c for c in self.trainer.callbacks if isinstance(c, GracefulInterrupt))._note(15, None)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    assert main(words) == 128 + 15
    assert "the same command" in capsys.readouterr().err
    assert trained == [0, 0, 0, 0, 1, 1]
    assert main(words) == 0
    assert trained == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    root = tmp_path / "runs" / "quickstart" / "kfold_3"
    told = json.loads((root / "folds.json").read_text())
    held_out = []
    for fold in range(3):
        with (root / f"fold_{fold}" / "exposure.csv").open() as file:
            held_out += sorted({row["video"] for row in csv.DictReader(file) if row["split"] == "val"})
    assert len(held_out) == len(set(held_out)) == 6
    assert [fold["kept_step"] for fold in told["folds"]] == [
        json.loads((root / f"fold_{fold}" / "summary.json").read_text())["kept_step"] for fold in range(3)
    ]
    printed = capsys.readouterr().out
    assert f"--data.split.val_fraction 0 --trainer.max_steps {told['steps']}" in printed
    assert told["steps"] == 6  # four steps on two thirds of the clips

    trained.clear()
    assert main(words) == 0
    assert trained == []
    assert main([*words, "--model.warmup_steps=3"]) == 2
    assert "folds made with other options" in capsys.readouterr().err

    shutil.rmtree(root / "fold_2")
    table = root / "clips.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:1] + lines[2:]))  # as if the first clip had come since
    assert main(words) == 2
    assert f"was begun with other clips: 1 clip is new ({lines[1].partition(',')[0]})" in capsys.readouterr().err
    assert trained == []


def test_more_folds_than_videos_is_one_line(quickstart, capsys):
    _, *words = quickstart()
    assert main(["kfold", "--folds=9", *words]) == 2
    assert "6 recordings cannot be divided into 9 folds" in capsys.readouterr().err


def fold(kept, gain, train=8, val=4):
    return {
        "stopped_by": "divergence",
        "stop_step": 300,
        "best_step": kept,
        "kept_step": kept,
        "kept_gain": gain,
        "exposures_at_kept": {"mean": kept / 2},
        "num_clips": {"train": train, "val": val, "test": 0},
    }


def test_the_median_fold_decides():
    told = summarise_folds([fold(100, 0.1), fold(120, 0.2), fold(400, 0.3)])
    assert told["steps"] == 180
    assert told["exposures"] == 60
    assert told["gain"]["mean"] == pytest.approx(0.2)
    assert told["gain"]["standard_error"] == pytest.approx(0.1 / 3**0.5)
    assert summarise_folds([fold(0, 0.0), fold(0, 0.0), fold(100, 0.1)])["steps"] == 0


@pytest.mark.parametrize(
    ("stopped_by", "still_improving", "bound"),
    [("max_steps", True, True), ("max_steps", False, False), ("copies", True, False)],
)
def test_folds_that_were_still_improving_give_a_lower_bound(capsys, tmp_path, stopped_by, still_improving, bound):
    """Not those that another signal stopped there: more steps would change nothing."""
    late = [{**fold(300, 0.1), "stopped_by": stopped_by, "still_improving": still_improving} for _ in range(2)]
    told = summarise_folds([*late, fold(100, 0.1)])
    assert (told["lower_bound"], [each["lower_bound"] for each in told["folds"]]) == (bound, [bound, bound, False])
    print_folds(told, [], tmp_path / "folds.json")
    printed = " ".join(capsys.readouterr().out.split())
    assert ("That is a lower bound: 2 of 3 folds were still improving" in printed) == bound
