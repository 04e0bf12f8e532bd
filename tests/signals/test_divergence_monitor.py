"""Paired validation in a real run, against losses computed by hand."""

import csv
import json

import numpy as np
import pytest
import torch

from vidlit.__main__ import main
from vidlit.diffusion.batch import clip_key, collate
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.noising import RectifiedFlow, stratum_sigmas
from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError
from vidlit.signals.divergence_monitor import DivergenceMonitor
from vidlit.training.module import VideoDiffusionModule


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture
def monitored(monkeypatch):
    """The monitors of runs that end."""
    found = []
    verdict = DivergenceMonitor.verdict

    def remember(self):
        found.append((self, self.trainer))
        return verdict(self)

    monkeypatch.setattr(DivergenceMonitor, "verdict", remember)
    return found


@torch.no_grad()
def losses_by_hand(demo, data, clips, state=None):
    """One clip at a time, from a model made anew."""
    module = VideoDiffusionModule(str(demo.dir / "base"), fps=16)
    module.configure_model()
    if state is not None:
        module.load_state_dict(state, strict=False)
    module.eval()
    dataset = data.dataset(clips)
    return torch.cat(
        [paired_losses(module, module.noising, collate([dataset[row]]), 0, 2)[LATENTS] for row in range(len(clips))]
    )


def test_curves_are_what_a_loop_over_single_clips_gives(quickstart, demo, tmp_path, monitored):
    assert main(quickstart(data__batches__val_size=3)) == 0
    monitor, trainer = monitored[-1]
    data, run = trainer.datamodule, tmp_path / "runs" / "quickstart" / "0"
    (curves,) = monitor.parts.values()
    assert curves.steps == [0, 4, 8, 12]
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    check = curves.steps.index(step := best["global_step"])
    assert check > 0
    for name, clips in (("val", data.scored_clips), ("train_eval", data.train_eval_clips)):
        before = losses_by_hand(demo, data, clips)
        torch.testing.assert_close(curves.references[name].float(), before, rtol=1e-5, atol=0)
        assert column(run, f"{name}/loss")[0] == pytest.approx(float(before.mean()), rel=1e-5)
        after = losses_by_hand(demo, data, clips, best["state_dict"])
        logs = (after / before).log().double()
        keys, sizes = torch.tensor([clip_key(clip.clip_id) for clip in clips]), [1] * len(clips)
        weight = torch.where(stratum_sigmas(RectifiedFlow(), keys, sizes, 2) > 0.7, 0.25, 1.0)
        expected = (logs * weight).sum(1) / weight.sum(1)
        np.testing.assert_allclose(curves.curves[name][check], expected, rtol=1e-4, atol=1e-5)
        assert not np.any(curves.curves[name][0].numpy())
        assert column(run, f"{name}/log_ratio")[step] == pytest.approx(float(expected.mean()), abs=1e-5)
        for k in range(2):
            assert column(run, f"{name}/log_ratio_bin_{k}")[step] == pytest.approx(float(logs[:, k].mean()), abs=1e-5)
    gap = column(run, "val/log_ratio")[step] - column(run, "train_eval/log_ratio")[step]
    assert column(run, "divergence/gap")[step] == pytest.approx(gap, abs=1e-6)


def test_train_eval_and_held_out_clips_are_never_the_same(quickstart, monitored):
    assert main(quickstart(trainer__max_steps=4)) == 0
    _, trainer = monitored[-1]
    data = trainer.datamodule
    held_out, train_eval = ({clip.clip_id for clip in clips} for clips in (data.val_clips, data.train_eval_clips))
    assert (len(train_eval), len(held_out)) == (4, 6)
    assert not train_eval & held_out


def test_history_survives_a_checkpoint_and_other_clips_do_not(quickstart, tmp_path, monitored, capsys):
    assert main(quickstart(trainer__max_steps=8)) == 0
    monitor, trainer = monitored[-1]
    state = monitor.state_dict()
    torch.save(state, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)  # as Lightning loads a checkpoint
    restored = DivergenceMonitor()
    restored.setup(trainer, trainer.lightning_module, "fit")
    restored.load_state_dict(state)
    before, after = monitor.histories()["all"], restored.histories()["all"]
    assert np.array_equal(before.steps, after.steps)
    assert np.array_equal(before.val, after.val)
    assert np.array_equal(before.train_eval, after.train_eval)
    assert restored.verdict() == monitor.verdict()

    with pytest.raises(UserError, match=r"noise levels, here it is 2.*num_strata=4"):
        restored.load_state_dict({**state, "val_reference": state["val_reference"].repeat(1, 2)})
    with pytest.raises(UserError, match="other val clips"):
        restored.load_state_dict({**state, "val_keys": state["val_keys"] + 1})
    capsys.readouterr()
    words = [*quickstart(trainer__max_steps=12, data__split__val_fraction=0.2), "--ckpt_path=last"]
    assert main(words) == 2
    assert "data.split.val_fraction" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_overfits_is_stopped_and_its_best_step_restored(quickstart, tmp_path):
    """Two videos, a high rate and many checks: the held-out loss turns within a few steps."""
    words = quickstart(
        trainer__max_steps=400, trainer__val_check_interval=4, data__buckets="[9x48x48]", data__split__val_fraction=0.67
    )
    assert main([*words, "--model.optimizer.init_args.lr=0.004"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "divergence"
    assert 0 < summary["best_step"] < summary["stop_step"] < summary["planned_steps"] == 400
    assert summary["kept_step"] == summary["best_step"]
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert [decision["action"] == "stop" for decision in decisions] == [False] * (len(decisions) - 1) + [True]
    ratios, train_eval = column(run, "val/log_ratio"), column(run, "train_eval/log_ratio")
    stop, best = summary["stop_step"], summary["best_step"]
    assert ratios[best] == min(ratios.values())
    assert ratios[stop] > ratios[best]
    assert train_eval[stop] < train_eval[best]
    assert max(column(run, "divergence/statistic").values()) > 0
    assert summary["gain"] == pytest.approx(-ratios[best])
