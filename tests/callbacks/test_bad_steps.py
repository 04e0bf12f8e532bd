"""NaN and infinity in real runs: the step is left out, its clips are named, too many end the run."""

import itertools
import json

import pytest
import torch

from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the loss of some micro-batches NaN, or their gradient infinite; records the weights before each step."""
    record = {"weights": [], "rows": {}, "clips": []}

    def poison(batches, what="loss"):
        step = VideoDiffusionModule.training_step

        def training_step(self, batch, batch_idx):
            record["weights"].append({k: v.detach().clone() for k, v in self.trainable_state().items()})
            record["clips"] = self.trainer.datamodule.train_clips
            record["rows"][batch_idx] = batch.indices.tolist()
            loss = step(self, batch, batch_idx)["loss"]
            if batch_idx not in batches:
                return loss
            return loss * float("nan") if what == "loss" else loss + (loss * 0).sqrt()  # slope of sqrt at 0

        monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
        return record

    return poison


def same(before, after):
    return all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(("what", "fused"), [("loss", True), ("gradient", True), ("loss", False)])
def test_a_bad_step_is_left_out_and_its_clips_named(quickstart, tmp_path, poisoned, what, fused, capsys):
    record = poisoned({2}, what)
    assert main(quickstart(trainer__max_steps=5, trainer__val_check_interval=5, model__optimizer__fused=fused)) == 0
    weights = record["weights"]
    assert [same(a, b) for a, b in itertools.pairwise(weights)] == [False, False, True, False]
    run = tmp_path / "runs" / "quickstart" / "0"
    lines = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    clips = sorted(record["clips"][row].clip_id for row in record["rows"][2])
    assert [(line["step"], line["clips"]) for line in lines] == [(3, clips)]
    assert (lines[0]["losses"] == ["nan"]) == (what == "loss")
    warned = capsys.readouterr().err
    assert f"step 3: the {what} was NaN or infinite" in warned
    assert clips[0] in warned
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    assert {"num_bad": 1} in state.values()


def test_a_bad_step_leaves_no_trace_in_the_moments(quickstart, tmp_path, poisoned):
    """Neither where a fused optimizer is told by the device nor where one is told by the host."""
    record, states = poisoned({2}), {}
    for fused in (True, False):
        words = quickstart(
            trainer__max_steps=4,
            trainer__val_check_interval=4,
            model__optimizer__fused=fused,
            run__name=f"fused_{fused}",
        )
        assert main(words) == 0
        last = torch.load(tmp_path / "runs" / f"fused_{fused}" / "0" / "checkpoints" / "last.ckpt", weights_only=True)
        states[fused] = last["optimizer_states"][0]["state"]
    assert len(record["weights"]) == 8
    for told, dropped in zip(states[True].values(), states[False].values(), strict=True):
        assert float(told["step"]) == float(dropped["step"]) == 3
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(told[name], dropped[name], rtol=1e-4, atol=1e-9)


def test_a_bad_step_before_a_checkpoint_is_in_it(quickstart, tmp_path, poisoned):
    """A step is looked at when the next one is under way; what is saved before that has been looked at, too."""
    poisoned({1, 3})
    assert main(quickstart(trainer__max_steps=4, trainer__val_check_interval=2)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert [json.loads(line)["step"] for line in (run / "skipped.jsonl").read_text().splitlines()] == [2, 4]
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert {"num_bad": 2} in last["callbacks"].values()


def test_of_an_accumulated_step_the_bad_micro_batch_is_named(quickstart, tmp_path, poisoned):
    record = poisoned({3})
    words = quickstart(trainer__max_steps=3, trainer__val_check_interval=6, trainer__accumulate_grad_batches=2)
    assert main(words) == 0
    assert same(record["weights"][2], record["weights"][4])  # the whole step is left out
    (line,) = [json.loads(x) for x in (tmp_path / "runs/quickstart/0/skipped.jsonl").read_text().splitlines()]
    assert line["step"] == 2
    assert line["clips"] == sorted(record["clips"][row].clip_id for row in record["rows"][3])


def test_stop_ends_the_run_with_the_weights_of_before(quickstart, tmp_path, poisoned, capsys):
    poisoned({2})
    assert main([*quickstart(trainer__max_steps=5), "--model.bad_steps.action=stop"]) == 2
    error = capsys.readouterr().err
    assert "vidlit: error: step 3: the loss was NaN or infinite, on clips" in error
    assert "Traceback" not in error
    assert json.loads((tmp_path / "runs/quickstart/0/summary.json").read_text())["stopped_by"] == "error"


def test_too_many_end_the_run(quickstart, poisoned, capsys):
    poisoned(set(range(12)))
    assert main([*quickstart(), "--model.bad_steps.max_skipped=2"]) == 2
    assert "steps of this kind in this run: 3" in capsys.readouterr().err
