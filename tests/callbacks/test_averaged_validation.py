"""Averaged weights in real runs: what is validated, kept and exported, and that a resume changes nothing."""

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.callbacks.graceful_interrupt import GracefulInterrupt
from vidlit.training.averaging import kept_weights
from vidlit.training.module import VideoDiffusionModule

SHAPE = "diffusion_pytorch_model.safetensors"
EMA_OPTIONS = ["--model.ema.decay=0.9"]
SCHEDULE_FREE = [
    "--model.optimizer=schedulefree.AdamWScheduleFree",
    "--model.optimizer.lr=0.002",
    "--model.warmup_steps=0",
]


def checkpoint(run, name):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def exported(run):
    return {f"transformer.{k}": v for k, v in load_file(run / "weights" / "transformer" / SHAPE).items()}


@pytest.mark.parametrize("options", [EMA_OPTIONS, SCHEDULE_FREE], ids=["ema", "schedule-free"])
def test_the_average_is_validated_kept_and_exported(quickstart, demo, latents, tmp_path, options):
    seen = {}
    score = VideoDiffusionModule.validation_step

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        seen[self.trainer.global_step] = {k: v.detach().clone() for k, v in self.trainable_state().items()}
        return score(self, batch, batch_idx, dataloader_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "validation_step", validation_step)
        assert main([*quickstart(trainer__max_steps=8), *options]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    last, best = checkpoint(run, "last"), checkpoint(run, "best")
    averages = kept_weights(last["state_dict"])
    assert averages.keys() == seen[8].keys()
    for name, value in averages.items():
        assert torch.equal(value, seen[8][name]), name  # what was looked at
    assert any(not torch.equal(averages[name], last["state_dict"][name]) for name in averages)  # is not what trains
    for name, value in exported(run).items():
        assert torch.equal(value, kept_weights(best["state_dict"])[name]), name
        assert torch.equal(value, seen[best["global_step"]][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("options", [EMA_OPTIONS, SCHEDULE_FREE], ids=["ema", "schedule-free"])
def test_interrupted_and_resumed_equals_uninterrupted(quickstart, tmp_path, monkeypatch, options):
    assert main([*quickstart(trainer__max_steps=8), *options]) == 0
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 5:
            next(c for c in self.trainer.callbacks if isinstance(c, GracefulInterrupt))._note(15, None)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "training_step", training_step)
        assert main([*quickstart(run__name="cut", trainer__max_steps=8), *options]) == 128 + 15
    assert main([*quickstart(run__name="cut", trainer__max_steps=8), *options, "--ckpt_path=last"]) == 0
    whole, cut = (checkpoint(tmp_path / "runs" / name / "0", "last") for name in ("quickstart", "cut"))
    assert whole["state_dict"].keys() == cut["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, cut["state_dict"][name]), name


def test_the_average_against_one_kept_by_hand(quickstart, tmp_path):
    by_hand, decays = {}, [min(0.9, (1 + n) / (10 + n)) for n in range(4)]
    end = VideoDiffusionModule.on_train_batch_start

    def on_train_batch_start(self, batch, batch_idx):
        trained = {name: value.detach().clone() for name, value in self.trainable_state().items()}
        number = self.trainer.global_step
        for name, value in trained.items():
            keep = decays[number - 1] if number else 0.0
            by_hand[name] = keep * by_hand.get(name, 0.0) + (1 - keep) * value
        return end(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "on_train_batch_start", on_train_batch_start)
        assert main([*quickstart(trainer__max_steps=4), *EMA_OPTIONS]) == 0
    # by_hand has seen the weights before the last step; the check at step 4 comes after it
    last = checkpoint(tmp_path / "runs" / "quickstart" / "0", "last")["state_dict"]
    assert int(last["averaged.num_updates"]) == 4
    for name, average in kept_weights(last).items():
        expected = decays[3] * by_hand[name] + (1 - decays[3]) * last[name]
        torch.testing.assert_close(average, expected, rtol=1e-5, atol=1e-7)


def test_a_checkpoint_is_validated_by_its_average_without_saying_so(quickstart, tmp_path, capsys):
    assert main([*quickstart(trainer__max_steps=4), *EMA_OPTIONS]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    scored = []
    step = VideoDiffusionModule.validation_step

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        scored.append({k: v.detach().clone() for k, v in self.trainable_state().items()})
        return step(self, batch, batch_idx, dataloader_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "validation_step", validation_step)
        assert main([*quickstart("validate"), f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    for name, value in kept_weights(checkpoint(run, "last")["state_dict"]).items():
        assert torch.equal(scored[0][name], value), name


def test_resuming_without_the_average_says_so(quickstart, capsys):
    assert main([*quickstart(trainer__max_steps=4), *EMA_OPTIONS]) == 0
    assert main([*quickstart(trainer__max_steps=8), "--ckpt_path=last"]) == 2
    assert "model.ema {'decay': 0.9" in capsys.readouterr().err


def test_schedule_free_and_an_average_exclude_each_other(quickstart, capsys):
    assert main([*quickstart(), *SCHEDULE_FREE, *EMA_OPTIONS]) == 2
    assert "averages by itself" in capsys.readouterr().err


def test_it_does_nothing_where_there_is_no_average(demo):
    assert VideoDiffusionModule(str(demo.dir / "base"), fps=16).averaged is None
