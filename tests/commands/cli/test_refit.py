"""Two phases: find the step that is best, then train again on all clips until there."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.commands.cli.refit import announcement, finished, full_steps, no_refit_because, note_refit
from vidlit.runs.directory import RunDirectory
from vidlit.training.module import VideoDiffusionModule

OPTIONS = {"trainer__max_steps": 8, "data__split__test_fraction": 0.2, "refit": "true"}


def summary_of(run):
    return json.loads((run / "summary.json").read_text())


def weights(run):
    return load_file(run / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.slow
def test_all_clips_are_trained_on_as_often_as_was_best(quickstart, tmp_path, capsys, monkeypatch):
    assert main(quickstart(**OPTIONS)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    first, second = summary_of(run), summary_of(run / "refit")
    clips = first["num_clips"]
    steps = round(first["kept_step"] * (clips["train"] + clips["val"]) / clips["train"])
    assert clips["val"] > 0
    assert steps > first["kept_step"] > 0
    assert second["stop_step"] == second["kept_step"] == second["planned_steps"] == steps
    assert second["num_clips"] == {"train": clips["train"] + clips["val"], "val": 0, "test": clips["test"]}
    assert second["exposures"]["mean"] == pytest.approx(first["exposures_at_kept"]["mean"], rel=0.2)
    assert first["refit"]["kept_step"] == steps
    assert (run / first["refit"]["weights"] / "transformer").is_dir()
    assert any(not torch.equal(value, weights(run)[name]) for name, value in weights(run / "refit").items())
    seen = {}
    for each in (run, run / "refit"):
        with (each / "exposure.csv").open() as file:
            seen[each.name] = {row["clip_id"]: row for row in csv.DictReader(file)}
    held_out = {clip for clip, row in seen["0"].items() if row["split"] == "val"}
    assert all(int(seen["refit"][clip]["exposures"]) > 0 for clip in held_out)
    test = {clip for clip, row in seen["0"].items() if row["split"] == "test"}
    assert all(seen["refit"][clip]["split"] == "test" for clip in test)
    assert f"on all {clips['train'] + clips['val']} clips, for {steps} steps" in capsys.readouterr().out

    # Both phases are over: nothing is trained again.
    def training_step(self, batch, batch_idx):
        raise AssertionError("trained again")

    with monkeypatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "training_step", training_step)
        assert main([*quickstart(**OPTIONS), "--ckpt_path=last"]) == 0


@pytest.mark.slow
def test_a_second_phase_that_is_interrupted_goes_on(quickstart, tmp_path, monkeypatch, capsys):
    words = quickstart(**OPTIONS)
    assert main(words) == 0
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.datamodule.splitting.train_on_val and self.trainer.global_step + 1 == 3:
            next(c for c in self.trainer.callbacks if isinstance(c, GracefulInterrupt))._note(15, None)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "training_step", training_step)
        assert main([*words, "--run.name=cut"]) == 128 + 15
    assert "the same command and --ckpt_path" in capsys.readouterr().err
    whole, cut = (tmp_path / "runs" / name / "0" for name in ("quickstart", "cut"))
    assert summary_of(cut / "refit")["stopped_by"] == "interrupted"
    assert "refit" not in summary_of(cut)
    assert main([*words, "--run.name=cut", "--ckpt_path=last"]) == 0
    for name, value in weights(whole / "refit").items():
        assert torch.equal(value, weights(cut / "refit")[name]), name
    assert summary_of(cut)["refit"] == summary_of(whole)["refit"]


def test_nothing_is_refitted_where_nothing_was_held_out(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4, data__split__val_fraction=0, refit="true")) == 0
    assert "No refit: there were no validation clips" in capsys.readouterr().out
    assert not (tmp_path / "runs" / "quickstart" / "0" / "refit").exists()


def test_when_a_phase_is_over_and_what_follows():
    over = {"stopped_by": "divergence", "planned_steps": 100, "kept_step": 0, "num_clips": {"train": 6, "val": 3}}
    assert finished(over, 100)
    assert finished(over, 500)
    assert not finished({}, 100)
    assert not finished({**over, "stopped_by": "interrupted"}, 100)
    assert finished({**over, "stopped_by": "max_steps"}, 100)
    assert not finished({**over, "stopped_by": "max_steps"}, 200)
    assert "base model" in no_refit_because(over)
    assert no_refit_because({**over, "kept_step": 40}) is None
    assert full_steps({**over, "kept_step": 40}) == 60
    assert "no validation clips" in no_refit_because({**over, "num_clips": {"train": 6, "val": 0}})


@pytest.mark.parametrize(
    ("stopped_by", "still_improving", "bound"),
    [("max_steps", True, True), ("max_steps", False, False), ("copies", True, False)],
)
def test_it_says_where_more_steps_may_be_better(tmp_path, stopped_by, still_improving, bound):
    over = {"stopped_by": stopped_by, "stop_step": 40, "planned_steps": 40, "kept_step": 40, "exposures": {}}
    summary = {**over, "still_improving": still_improving, "num_clips": {"train": 6, "val": 3}}
    assert ("a lower bound" in announcement(summary)) == bound
    directory = RunDirectory(tmp_path)
    directory.write_summary(summary)
    directory.refit.path.mkdir()
    directory.refit.write_summary(over)
    note_refit(directory)
    assert directory.read_summary()["refit"]["lower_bound"] == bound
