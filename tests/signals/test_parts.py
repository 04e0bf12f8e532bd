"""A run of several parts: each has a curve, a verdict, a best step and weights of its own."""

import csv
import json
from dataclasses import replace

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from tests.models import bases
from vidlit.__main__ import main
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.signals.overfit_stopping import OverfitStopping
from vidlit.stopping.verdict import Verdict


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return bases.wan_pair(tmp_path_factory.mktemp("pair") / "base", boundary=0.7)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("pair_latents")


@pytest.fixture
def words(pair, store, quickstart):
    def make(command="fit", **options):
        given = {
            "data__store": store,
            "data__buckets": "[9x32x64]",
            "model__base": pair,
            "model__adapter": "{rank: 4}",
            "model__optimizer__init_args__lr": 0.02,
            "trainer__val_check_interval": 2,
        }
        return quickstart(command, **given | options)

    return make


@pytest.fixture
def judged(monkeypatch):
    """Has each part be done at a step: the rule itself needs more checks than a test of the way through a run has."""
    judge = DivergenceMonitor.verdicts

    def decide(**done_at):
        def verdicts(self):
            step = self.trainer.global_step
            return {
                name: self.done.get(name)
                or replace(found, action="stop" if step >= done_at[name] else "continue", reason=f"Judged {name}.")
                for name, found in judge(self).items()
            }

        monkeypatch.setattr(DivergenceMonitor, "verdicts", verdicts)

    return decide


def rows_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def steps_with(run, name):
    return [int(float(row["step"])) for row in rows_of(run) if row.get(name)]


def trained(run, name):
    state = torch.load(run / "checkpoints" / name, weights_only=True)["state_dict"]
    return {
        part: {k: v for k, v in state.items() if k.startswith(f"{part}.")} for part in ("transformer", "transformer_2")
    }


def test_a_part_that_is_done_is_frozen_at_its_best_and_the_other_goes_on(words, judged, tmp_path, capsys):
    judged(high=4, low=8)
    assert main(words(trainer__max_steps=20)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["stopped_by"], summary["stop_step"]) == ("divergence", 8)
    assert "step 4: high is done, low trains on. Judged high." in capsys.readouterr().out
    assert summary["parts"]["high"]["best_step"] <= 4
    assert summary["parts"]["high"]["kept_step"] == summary["parts"]["high"]["best_step"]
    assert summary["parts"]["low"]["kept_step"] == summary["parts"]["low"]["best_step"]
    # each part is scored as long as it is trained, and has a curve of its own beside the mean
    assert steps_with(run, "val/log_ratio/high") == [0, 2, 4]
    assert steps_with(run, "val/log_ratio/low") == [0, 2, 4, 6, 8]
    assert steps_with(run, "val/log_ratio") == [0, 2, 4, 6, 8]
    # the frozen one did not move again
    last = trained(run, "last.ckpt")["transformer"]
    kept = trained(run, "best.ckpt")
    assert all(torch.equal(last[name], kept["transformer"][name]) for name in last)
    for part, title in (("transformer", "high"), ("transformer_2", "low")):
        exported = load_file(run / "weights" / f"pytorch_lora_weights_{title}.safetensors")
        assert len(exported) == len(kept[part])
        of_checkpoint = {name.removeprefix(f"{part}.").replace(".default", ""): v for name, v in kept[part].items()}
        assert all(
            torch.equal(value, of_checkpoint[name.removeprefix("transformer.")]) for name, value in exported.items()
        )
    pipeline = diffusers.WanPipeline.from_pretrained(summary_base(run))
    pipeline.load_lora_weights(run / "weights", weight_name="pytorch_lora_weights_high.safetensors")
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert decisions[-1]["verdicts"][0]["reason"] == "high: Judged high. low: Judged low."
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "Validation loss, high" in page
    assert "Validation loss, low" in page


def summary_base(run):
    return (run / "config.yaml").read_text().split("base: ")[1].split("\n")[0].strip()


def test_a_run_that_goes_on_knows_what_is_done_and_at_which_weights(words, judged, tmp_path, capsys):
    """Interrupted at the very check: its checkpoint is from before the best weights were put back."""
    judged(high=4, low=8)
    assert main(words(trainer__max_steps=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    kept = trained(run, "best.ckpt")["transformer"]
    assert main([*words(trainer__max_steps=6), "--ckpt_path=last"]) == 0
    after = trained(run, "last.ckpt")["transformer"]
    assert all(torch.equal(kept[name], after[name]) for name in kept)
    assert steps_with(run, "val/log_ratio/high") == [0, 2, 4]
    assert steps_with(run, "val/log_ratio/low") == [0, 2, 4, 6]
    capsys.readouterr()
    assert main([*words("validate"), f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]) == 0
    table = capsys.readouterr().out
    assert "validation, high" in table
    assert "nan" not in table


@pytest.mark.parametrize(("mode", "stop_step", "high"), [("stop", 2, [0, 2]), ("warn", 6, [0, 2, 4, 6])])
def test_the_policy_says_what_happens_when_one_part_is_done(words, judged, tmp_path, mode, stop_step, high):
    judged(high=2, low=6)
    assert main(words(trainer__max_steps=8, overfit_stopping__parts=mode)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert json.loads((run / "summary.json").read_text())["stop_step"] == stop_step
    assert steps_with(run, "val/log_ratio/high") == high


def test_one_expert_alone_has_the_run_of_any_model(words, tmp_path):
    assert main(words(model__expert="low", trainer__max_steps=2)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert steps_with(run, "val/log_ratio") == [0, 2]
    assert (run / "weights" / "pytorch_lora_weights_low.safetensors").is_file()
    assert not (run / "weights" / "pytorch_lora_weights_high.safetensors").exists()
    assert "parts" not in json.loads((run / "summary.json").read_text())


@pytest.mark.parametrize(("mode", "expected"), [("stop", True), ("warn", True), ("off", False)])
def test_what_a_signal_that_is_off_would_say_puts_no_base_model_back(monkeypatch, mode, expected):
    monitor = DivergenceMonitor()
    monitor.judged = {"all": Verdict("divergence", "stop", "No gain.", {"case": "no gain"})}
    stopping = OverfitStopping(policy={"divergence": mode})
    monkeypatch.setattr(OverfitStopping, "_monitor", monitor)
    assert stopping._no_gain("all") is expected
    assert not stopping._no_gain("another")
