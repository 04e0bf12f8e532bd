import csv
import json

import pytest
import torch

from vidlit.__main__ import main
from vidlit.signals.exposure_ledger import ExposureLedger
from vidlit.stopping.exposure import adjusted_exposure


@pytest.fixture
def judged(monkeypatch):
    """Ledger, rates at every step and trainer of a run."""
    found = {"rates": []}
    verdict, step_end = ExposureLedger.verdict, ExposureLedger.on_train_batch_end

    def on_train_batch_end(self, trainer, *args):
        found["rates"].append(trainer.optimizers[0].param_groups[0]["lr"])
        step_end(self, trainer, *args)

    def remember(self):
        found.update(ledger=self, trainer=self.trainer, verdict=verdict(self))
        return found["verdict"]

    monkeypatch.setattr(ExposureLedger, "verdict", remember)
    monkeypatch.setattr(ExposureLedger, "on_train_batch_end", on_train_batch_end)
    return found


def test_exposures_are_counted_per_source_video(quickstart, tmp_path, judged):
    assert main(quickstart()) == 0
    ledger, trainer = judged["ledger"], judged["trainer"]
    videos = ledger.per_video()
    assert set(videos) == {clip.source.group for clip in trainer.datamodule.train_clips}
    assert sum(videos.values()) == 12 * 2
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["exposures"]["mean"] == 24 / len(videos)
    assert summary["exposures"]["max"] == max(videos.values())
    assert summary["exposures_at_best"]["mean"] == summary["best_step"] * 2 / len(videos)
    expected = adjusted_exposure(judged["rates"], 2, len(videos))[-1]
    assert judged["verdict"].evidence["adjusted"] == pytest.approx(float(expected))


def test_accumulated_micro_batches_count_as_one_step_of_the_larger_batch(quickstart, judged):
    assert main([*quickstart(trainer__max_steps=4, data__batches__size=1), "--trainer.accumulate_grad_batches=2"]) == 0
    ledger = judged["ledger"]
    videos = ledger.per_video()
    micro_batches = sum(videos.values())
    assert micro_batches >= 4
    rates = judged["rates"][:micro_batches]
    expected = sum(float(adjusted_exposure([rate], 2, len(videos))[-1]) / 2 for rate in rates)
    assert judged["verdict"].evidence["adjusted"] == pytest.approx(expected)


def test_a_hard_cap_stops_the_run(quickstart, tmp_path, capsys):
    assert main([*quickstart(), "--exposure.hard_cap=4"]) == 0
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["stopped_by"] == "exposure"
    assert summary["stop_step"] == 8  # 2 samples a step over 3 videos: the first check at 4 or more each
    assert "the cap of 4 is reached" in capsys.readouterr().out


def test_a_cap_that_may_only_warn_does_not_stop(quickstart, tmp_path):
    assert main([*quickstart(), "--exposure.hard_cap=4", "--overfit_stopping.policy.exposure=warn"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert json.loads((run / "summary.json").read_text())["stop_step"] == 12
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert [decision["action"] for decision in decisions] == ["continue", "warn", "warn"]


def test_the_ledger_goes_through_a_checkpoint_as_tensors_and_numbers(quickstart, tmp_path, judged):
    assert main(quickstart(trainer__max_steps=4)) == 0
    checkpoint = torch.load(tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "best.ckpt", weights_only=True)
    assert int(checkpoint["vidlit_exposure"]["counted"].sum()) == 4 * 2
    trainer, restored = judged["trainer"], ExposureLedger()
    trainer.state.fn = "fit"
    restored.setup(trainer, trainer.lightning_module, "fit")
    restored.on_load_checkpoint(trainer, trainer.lightning_module, checkpoint)
    assert restored.per_video() == judged["ledger"].per_video()
    assert restored.verdict() == judged["verdict"]
    assert restored.statistics_at(4).items() >= judged["ledger"].statistics().items()


def test_steps_after_the_last_check_are_counted(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=5, trainer__val_check_interval=4)) == 0
    with (tmp_path / "runs" / "quickstart" / "0" / "exposure.csv").open() as file:
        assert sum(int(row["exposures"]) for row in csv.DictReader(file)) == 5 * 2
