import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.callbacks.run_checkpoints import RunCheckpoints
from vidlit.runs.directory import RunDirectory

SHAPE = "diffusion_pytorch_model.safetensors"


def log_ratios(run):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(r["step"])): float(r["val/log_ratio"]) for r in csv.DictReader(file) if r["val/log_ratio"]}


def load(run, name):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_best_is_the_lowest_check_and_last_the_last(quickstart, tmp_path):
    assert main(quickstart()) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    ratios = log_ratios(run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    best = load(run, "best")
    assert best["global_step"] == min(ratios, key=ratios.get) > 0
    assert all(name.startswith("transformer.") for name in best["state_dict"])


def test_last_is_the_last_check_whether_it_was_better_or_not(quickstart, tmp_path):
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    assert main([*words, "--model.optimizer.init_args.lr=1.0"]) == 0
    assert load(tmp_path / "runs" / "quickstart" / "0", "last")["global_step"] == 8


def test_where_nothing_is_gained_the_base_model_is_kept(quickstart, demo, tmp_path, capsys):
    """A learning rate that only destroys: step 0 is the best check, restored and exported."""
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    assert main([*words, "--model.optimizer.init_args.lr=1.0", "--trainer.gradient_clip_val=null"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == summary["kept_step"] == 0
    assert summary["restored"]
    assert load(run, "best")["global_step"] == 0
    exported, base = (
        load_file(run / "weights" / "transformer" / SHAPE),
        load_file(demo.dir / "base" / "transformer" / SHAPE),
    )
    for name, value in base.items():
        assert torch.equal(exported[name], value), name
    assert "The base model itself is kept (step 0)" in capsys.readouterr().out


def test_the_last_weights_can_be_kept_instead(quickstart, tmp_path):
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    rate = "--model.optimizer.init_args.lr=1.0"
    assert main([*words, rate, "--overfit_stopping.restore=last"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kept_step"] == summary["stop_step"] == 8
    assert not summary["restored"]
    exported, base = load_file(run / "weights" / "transformer" / SHAPE), load(run, "best")["state_dict"]
    assert all(not torch.equal(value, base[f"transformer.{name}"]) for name, value in exported.items())


@pytest.mark.slow
def test_a_named_checkpoint_goes_on_in_its_own_directory(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=4)) == 0
    checkpoint = tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "last.ckpt"
    start = torch.load(checkpoint, weights_only=True)["global_step"]
    assert start == 4
    assert main([*quickstart(trainer__max_steps=8), f"--ckpt_path={checkpoint}"]) == 0
    assert [path.name for path in (tmp_path / "runs" / "quickstart").iterdir()] == ["0"]
    assert list(log_ratios(tmp_path / "runs" / "quickstart" / "0")) == [0, 4, 8]


def test_the_best_weights_hold_no_moments_and_a_run_goes_on_from_the_last(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    best, last = load(run, "best"), load(run, "last")
    assert best["optimizer_states"] == []
    assert last["optimizer_states"][0]["state"]
    assert best["callbacks"].keys() == last["callbacks"].keys()  # validate reads the base's losses there
    assert best["state_dict"].keys() == last["state_dict"].keys()
    capsys.readouterr()
    assert main([*quickstart(trainer__max_steps=6), "--ckpt_path=best"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "best.ckpt holds weights without the optimizer's state" in said
    assert "set --ckpt_path last" in said
    # That of a run of an earlier version does.
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "best.ckpt")
    assert main([*quickstart(trainer__max_steps=5, trainer__val_check_interval=1), "--ckpt_path=best"]) == 0
    assert load(run, "last")["global_step"] == 5


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def steep(ratios):
    """Step of the earliest check within a tenth of the best gain."""
    return next(step for step, ratio in ratios.items() if ratio <= 0.9 * min(ratios.values()))


@pytest.mark.slow
def test_conservative_keeps_the_earliest_check_within_a_tenth_of_the_best_gain(quickstart, tmp_path, capsys):
    words = quickstart(trainer__val_check_interval=2, trainer__max_steps=30)
    # A rate that falls: the gain soon no longer grows by much, so that the earliest good check is not the best.
    falling = [
        "--model.lr_scheduler=torch.optim.lr_scheduler.ExponentialLR",
        "--model.lr_scheduler.gamma=0.7",
        "--overfit_stopping.restore=conservative",
    ]
    assert main([*words, *falling]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary, ratios = summary_of(run), log_ratios(run)
    step = steep(ratios)
    assert 0 < step < summary["best_step"]
    assert (summary["kept"], summary["kept_step"], summary["restored"]) == ("conservative", step, True)
    assert summary["kept_gain"] < summary["gain"]
    assert summary["exposures_at_kept"]["mean"] < summary["exposures_at_best"]["mean"]
    kept = torch.load(run / "checkpoints" / f"candidate_{step:06d}.ckpt", weights_only=True)
    for name, value in load_file(run / "weights" / "transformer" / SHAPE).items():
        assert torch.equal(value, kept["state_dict"][f"transformer.{name}"]), name
    assert "optimizer_states" not in kept
    # every check that was the best of its time, from the one that counted one check ago on; nothing older
    before = {at: ratio for at, ratio in ratios.items() if at < max(ratios)}
    best_of_its_time = [at for at, ratio in ratios.items() if ratio <= min(r for s, r in ratios.items() if s <= at) < 0]
    kept_steps = sorted(int(path.stem[-6:]) for path in (run / "checkpoints").glob("candidate_*"))
    assert kept_steps == [at for at in best_of_its_time if at >= steep(before)]
    assert "the earliest within a tenth of the best gain" in capsys.readouterr().out

    # cut at step 20 and resumed, it keeps the same; files of steps that are trained again are made again
    assert main([*words, *falling, "--run.name=cut", "--trainer.max_steps=20"]) == 0
    cut = tmp_path / "runs" / "cut" / "0"
    (cut / "checkpoints" / "candidate_000026.ckpt").write_bytes(b"left over from before a kill")
    assert main([*words, *falling, "--run.name=cut", "--ckpt_path=last"]) == 0
    again = {**summary_of(cut), "seconds": 0, "validation_share": 0}
    assert again == {**summary, "seconds": 0, "validation_share": 0}
    assert {path.name for path in (cut / "checkpoints").iterdir()} == {p.name for p in (run / "checkpoints").iterdir()}


@pytest.mark.slow
def test_the_best_stands_in_where_no_candidates_were_kept(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=8)) == 0
    words = [*quickstart(trainer__max_steps=12), "--ckpt_path=last", "--overfit_stopping.restore=conservative"]
    assert main(words) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = summary_of(run)
    if summary["kept"] == "conservative":  # where the last steps alone are within a tenth
        assert (run / "checkpoints" / f"candidate_{summary['kept_step']:06d}.ckpt").is_file()
    else:
        assert (summary["kept"], summary["kept_step"]) == ("best", summary["best_step"])


@pytest.mark.parametrize("alone", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_with_nothing_held_out_the_run_trains_and_says_what_it_leans_on(quickstart, demo, tmp_path, capsys, alone):
    folder = tmp_path / "clips"
    folder.mkdir()
    for take in ("0", "1"):
        for scene in ("000",) if alone else ("000", "001"):
            name = f"scene_{scene}_take_{take}"
            shutil.copy(demo.dir / "clips" / f"{name}.mp4", folder)
            (folder / f"{name}.txt").write_text("a caption")
    words = quickstart(
        data__source=folder, data__split__val_fraction=0.5 if alone else 0, trainer__val_check_interval=2
    )
    if alone:  # takes of one scene are one source video
        rows = [f"{path.name},a caption,scene" for path in sorted(folder.glob("*.mp4"))]
        (folder / "metadata.csv").write_text("\n".join(["file_name,caption,group", *rows]))
    cap = ["--exposure.hard_cap=4", "--samples.num_videos=1", "--samples.num_steps=2"]
    assert main([*words, *cap]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = summary_of(run)
    assert summary["stopped_by"] == "exposure"
    assert summary["kept"] == "last"
    assert summary["kept_step"] == summary["stop_step"] < 12
    assert summary["best_step"] is summary["gain"] is summary["val_log_ratio"] is None
    assert summary["num_clips"]["val"] == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]
    assert len(column(run, "train_eval/log_ratio")) == len(RunDirectory(run).read_decisions()) + 1
    first = RunDirectory(run).read_decisions()[0]["verdicts"][0]
    assert first["evidence"]["case"] == "nothing held out"
    assert len(list((run / "samples").glob("step_*/*.mp4"))) == 1
    said = capsys.readouterr()
    assert "there are no validation clips" in said.err
    assert "exposure.hard_cap" in said.err
    assert "no validation clips to choose by" in said.out
    on = f"go on all the same: --ckpt_path {run / 'checkpoints' / 'last.ckpt'} --exposure.hard_cap null"
    assert on in " ".join(said.out.split())
    assert main([*words, "--exposure.hard_cap=null", "--ckpt_path=last"]) == 0
    assert (summary_of(run)["stopped_by"], summary_of(run)["stop_step"]) == ("max_steps", 12)


def test_the_best_is_known_after_a_resume_by_a_relative_path_and_in_another_place(quickstart, tmp_path, monkeypatch):
    """The path that a run prints to go on from; Lightning compares it with the absolute one, letter by letter."""
    began = []
    start = RunCheckpoints.on_train_start

    def on_train_start(self, *given):
        began.append((self.best_model_score, self.best_model_path))
        start(self, *given)

    monkeypatch.setattr(RunCheckpoints, "on_train_start", on_train_start)
    monkeypatch.chdir(tmp_path)
    run = Path("runs/quickstart/0")
    assert main(quickstart(run__dir="runs", trainer__max_steps=8)) == 0
    (saved,) = [state for name, state in load(run, "last")["callbacks"].items() if name.startswith("RunCheckpoints")]
    assert main([*quickstart(run__dir="runs", trainer__max_steps=9), f"--ckpt_path={run}/checkpoints/last.ckpt"]) == 0
    moved = run.rename(tmp_path / "moved")
    assert main([*quickstart(trainer__max_steps=10), f"--ckpt_path={moved}/checkpoints/last.ckpt"]) == 0
    for (score, path), folder in zip(began[1:], (run, moved), strict=True):
        assert score == saved["best_model_score"] < 0
        assert Path(path).name == "best.ckpt"
        assert Path(path).parents[1].name == folder.name
