import csv
import math

import pytest
import torch

from vidlit.__main__ import main
from vidlit.report.charts import sections
from vidlit.runs.logged_names import VAL_LOG_RATIO_BUCKET
from vidlit.runs.record import RunRecord
from vidlit.training import module
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.objective import training_loss


def column(run, name):
    """Steps and values of one column of ``metrics.csv``."""
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def test_rate_and_norm_are_those_of_the_step(quickstart, tmp_path, monkeypatch):
    norms, clip = [], VideoDiffusionModule.configure_gradient_clipping

    def configure_gradient_clipping(self, *args, **kwargs):
        clip(self, *args, **kwargs)
        norms.append(float(self.grad_norm))

    monkeypatch.setattr(VideoDiffusionModule, "configure_gradient_clipping", configure_gradient_clipping)
    words = quickstart(trainer__max_steps=6, model__warmup_steps=4, trainer__accumulate_grad_batches=2)
    assert main([*words, "--model.optimizer.init_args.lr=0.004", "--trainer.gradient_clip_val=1e-3"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    rates = column(run, "train/lr")
    assert list(rates) == [1, 2, 3, 4, 5, 6]
    assert list(rates.values()) == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.004, 0.004])
    assert list(column(run, "train/grad_norm").values()) == pytest.approx(norms)
    assert min(norms) > 1e-3  # before it is clipped


def test_the_loss_of_each_bucket_is_the_mean_since_the_last_log(quickstart, tmp_path, monkeypatch):
    seen = []

    def loss_of_step(pl_module, batch, position, step):
        loss, added = training_loss(pl_module, batch, position, step)
        if position == 1:
            loss = loss * float("nan")
        clip = pl_module.trainer.datamodule.train_clips[int(batch.indices[0])]
        seen.append((str(clip.bucket), float(loss)))
        return loss, added

    monkeypatch.setattr(module, "training_loss", loss_of_step)
    assert main(quickstart(trainer__log_every_n_steps=6, data__split__val_fraction=0.34)) == 0
    record = RunRecord(tmp_path / "runs" / "quickstart" / "0")
    for name in {bucket for bucket, _ in seen}:
        logged = record.curve(f"train/loss_bucket_{name}")
        expected = {
            last: losses
            for last in (6, 12)
            if (losses := [loss for bucket, loss in seen[last - 6 : last] if bucket == name and not math.isnan(loss)])
        }
        assert logged.steps.tolist() == list(expected)
        means = [sum(losses) / len(losses) for losses in expected.values()]
        assert logged.values.tolist() == pytest.approx(means)
    assert len({bucket for bucket, _ in seen}) > 1


def test_validation_loss_by_bucket_adds_up_to_the_whole_and_is_one_chart(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=4, data__split__val_fraction=0.67)) == 0
    record = RunRecord(tmp_path / "runs" / "quickstart" / "0")
    curves = record.named_curves_of(VAL_LOG_RATIO_BUCKET)
    assert [VAL_LOG_RATIO_BUCKET.which(name) for name in curves] == ["9x64x64", "17x48x80"]
    share = [row.clip_id.endswith("0.562") for row in record.exposures if row.split == "val"].count(True) / 8
    short, long = (curve.values[-1] for curve in curves.values())
    assert share * short + (1 - share) * long == pytest.approx(record.curve("val/log_ratio").values[-1])
    chart = next(each for each in sections(record)["Overfitting"] if each.title == "Validation loss by bucket")
    assert [line.name for line in chart.lines] == ["9x64x64", "17x48x80"]


def test_one_bucket_needs_no_curves_of_its_own(quickstart, tmp_path):
    words = quickstart(trainer__max_steps=4)
    assert main([*words, "--data.buckets=[17x48x80]"]) == 0
    names = RunRecord(tmp_path / "runs" / "quickstart" / "0").curves
    assert not [name for name in names if "bucket" in name]
    assert {"train/lr", "train/grad_norm", "perf/main_memory_gb"} < names.keys()
    assert ("perf/device_memory_gb" in names) == torch.cuda.is_available()
