import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.training.module import VideoDiffusionModule


def read_metrics(run, column):
    with (run / "metrics.csv").open() as file:
        return {int(float(row["step"])): float(row[column]) for row in csv.DictReader(file) if row.get(column)}


def weights(run):
    return load_file(run / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")


def test_fit_leaves_a_complete_run_directory(quickstart, tmp_path, capsys):
    assert main(quickstart(samples__num_videos=2, samples__num_steps=2)) == 0

    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "max_steps"
    assert summary["stop_step"] == summary["planned_steps"] == 12
    assert summary["kept_step"] == summary["best_step"]
    assert (run / "config.yaml").is_file()
    assert (run / "checkpoints" / "best.ckpt").is_file()
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert len(list((run / "samples").glob("step_*/*.mp4"))) == 2
    assert len(list((run / "samples").glob("step_*/contact_sheet.png"))) == 1
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert [decision["step"] for decision in decisions] == [4, 8, 12]
    assert list(read_metrics(run, "train/loss")) == list(range(1, 13))
    assert list(read_metrics(run, "val/log_ratio")) == [0, 4, 8, 12]
    assert read_metrics(run, "val/log_ratio")[0] == 0.0
    with (run / "exposure.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["exposures"]) for row in rows) == 12 * 2
    assert all(row["exposures"] == "0" for row in rows if row["split"] == "val")
    assert {row["split"] for row in rows} == {"train", "val"}
    printed = capsys.readouterr().out
    assert f"Step {summary['kept_step']} is kept" in printed
    assert str(run) in printed


@pytest.mark.parametrize("lr", [1e-3, 1.0])
def test_a_run_that_still_improves_at_its_end_is_told_to_train_on(quickstart, tmp_path, lr):
    """Also one that is too short to be judged; not one that got worse."""
    assert main(quickstart(model__optimizer__init_args__lr=lr)) == 0
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["stopped_by"] == "max_steps"
    improving = summary["best_step"] == summary["stop_step"]
    assert improving == (lr < 1.0)
    assert ("raise --trainer.max_steps" in summary["reason"]) == summary["still_improving"] == improving


def test_exported_weights_are_those_of_the_best_check(quickstart, tmp_path):
    assert main(quickstart()) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == json.loads((run / "summary.json").read_text())["best_step"]
    exported = weights(run)
    assert {f"transformer.{name}" for name in exported} == set(best["state_dict"])
    for name, value in exported.items():
        assert torch.equal(value, best["state_dict"][f"transformer.{name}"]), name


@pytest.mark.slow
def test_same_seed_same_numbers_and_another_seed_others(quickstart, tmp_path):
    for seed in (0, 0, 1):
        assert main([*quickstart(trainer__max_steps=4), f"--seed_everything={seed}"]) == 0
    first, again, other = (read_metrics(tmp_path / "runs" / "quickstart" / str(n), "train/loss") for n in range(3))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("workers", "signalled_at", "clips"),
    [(0, 6, 4), pytest.param(0, 8, 0, marks=pytest.mark.slow), pytest.param(2, 3, 0, marks=pytest.mark.slow)],
)
def test_interrupted_and_resumed_equals_uninterrupted(quickstart, tmp_path, monkeypatch, workers, signalled_at, clips):
    """At step 6 between checks and audits, at 8 where a check is due, at 3 before the first."""
    options = {"data__batches__num_workers": workers, "samples__num_audit": clips, "samples__audit_steps": 2}
    assert main(quickstart(**options)) == 0

    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step + 1 == signalled_at:
            next(c for c in self.trainer.callbacks if isinstance(c, GracefulInterrupt))._note(15, None)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "training_step", training_step)
        assert main(quickstart(run__name="cut", **options)) == 128 + 15
    summary = json.loads((tmp_path / "runs" / "cut" / "0" / "summary.json").read_text())
    assert summary["stopped_by"] == "interrupted"
    assert summary["stop_step"] == signalled_at
    assert main([*quickstart(run__name="cut", **options), "--ckpt_path=last"]) == 0

    whole, cut = (tmp_path / "runs" / name / "0" for name in ("quickstart", "cut"))
    assert not (tmp_path / "runs" / "cut" / "1").exists()
    for column in (
        "train/loss",
        "val/loss",
        "val/log_ratio",
        "train_eval/log_ratio",
        "exposure/mean",
        "exposure/adjusted",
    ):
        assert read_metrics(cut, column) == read_metrics(whole, column), column
    assert (cut / "exposure.csv").read_text() == (whole / "exposure.csv").read_text()
    assert (cut / "decisions.jsonl").read_text() == (whole / "decisions.jsonl").read_text()
    heard = {verdict["signal"] for verdict in json.loads((cut / "decisions.jsonl").open().readline())["verdicts"]}
    assert heard == {"divergence", "exposure", *(["copies", "diversity"] if clips else [])}
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(cut)[name]), name
