"""Options of training in real runs: batches that are accumulated, captions that are dropped, layers that are chosen."""

import csv
import gc
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule

SHAPE = "diffusion_pytorch_model.safetensors"


def run_of(tmp_path, name="quickstart"):
    return tmp_path / "runs" / name / "0"


def column(run, name):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(row["step"])): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def exported(run):
    return load_file(run / "weights" / "transformer" / SHAPE)


def test_two_accumulated_batches_of_two_are_one_of_four(quickstart, tmp_path, monkeypatch):
    """The same clips, noise and sigmas, handed over in halves: one step, clipped once, over all of them."""
    halves, norms = [], []
    step, clip = VideoDiffusionModule.training_step, VideoDiffusionModule.configure_gradient_clipping

    def training_step(self, batch, batch_idx):
        whole = self.trainer.accumulate_grad_batches == 1
        if whole:
            halves.append(batch)
            return step(self, batch, batch_idx)
        batch = halves[batch_idx // 2]
        self.rows_before = 2 * (batch_idx % 2)
        rows = slice(self.rows_before, self.rows_before + 2)
        conditioning = batch.conditioning.of_rows(range(rows.start, rows.stop))
        return paired(self, batch._replace(latents=batch.latents[rows], conditioning=conditioning), batch_idx // 2)

    def paired(self, half, position):
        from vidlit.diffusion.loss import denoising_loss
        from vidlit.diffusion.noising import keyed_generator

        rows = range(self.rows_before, self.rows_before + 2)
        generators = [keyed_generator("train", self.seed, position, row) for row in rows]
        sigmas = torch.cat([self.noising.sample_sigmas(1, each) for each in generators])
        noise = torch.stack([torch.randn(half.latents.shape[1:], generator=each) for each in generators])
        return denoising_loss(self, self.noising, half, noise, sigmas).mean()

    def configure_gradient_clipping(self, *args, **kwargs):
        clip(self, *args, **kwargs)
        norms.append(float(self.grad_norm))

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    monkeypatch.setattr(VideoDiffusionModule, "configure_gradient_clipping", configure_gradient_clipping)
    last = ["--overfit_stopping.restore=last"]
    rare = {"trainer__max_steps": 4, "trainer__val_check_interval": 1000}
    assert main([*quickstart(data__batches__size=4, **rare), *last]) == 0
    assert main([*quickstart(trainer__accumulate_grad_batches=2, run__name="halves", **rare), *last]) == 0
    assert len(norms) == 8  # clipped once a step, not once a batch
    assert norms[4:] == pytest.approx(norms[:4], rel=1e-4)
    whole, again = exported(run_of(tmp_path)), exported(run_of(tmp_path, "halves"))
    for name, value in whole.items():  # four steps of 2e-3, as in test_distributed
        torch.testing.assert_close(again[name], value, rtol=0, atol=1e-4)


def test_dropped_captions_train_on_the_empty_prompt(quickstart, tmp_path, monkeypatch):
    seen = []
    forward = VideoDiffusionModule.forward

    def recorded(self, noisy, sigmas, conditioning, expert=None):
        if self.training:
            empty = self.trainer.datamodule.prompt("").prompt_embeds[0]
            length = len(empty)
            for row in range(len(noisy)):
                is_empty = torch.equal(conditioning.prompt_embeds[row, :length], empty)
                assert not is_empty or conditioning.prompt_lengths[row] == length
                seen.append(is_empty)
        return forward(self, noisy, sigmas, conditioning, expert)

    monkeypatch.setattr(VideoDiffusionModule, "forward", recorded)
    assert main([*quickstart(trainer__max_steps=8, trainer__val_check_interval=8), "--model.caption_dropout=0.5"]) == 0
    assert 3 <= sum(seen) <= 13
    assert len(seen) == 16


def test_only_chosen_layers_are_trained_saved_and_changed(quickstart, demo, tmp_path):
    words = quickstart(trainer__max_steps=4, model__warmup_steps=0)
    assert main([*words, r"--model.layers=transformer_blocks\.\d+\.attn1", "--overfit_stopping.restore=last"]) == 0
    run = run_of(tmp_path)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(".attn1." in name for name in checkpoint["state_dict"])
    assert len(checkpoint["optimizer_states"][0]["state"]) == len(checkpoint["state_dict"])
    base, trained = load_file(demo.dir / "base" / "transformer" / SHAPE), exported(run)
    changed = {name for name, value in base.items() if not torch.equal(value, trained[name])}
    assert changed
    assert all(".attn1." in name for name in changed)


@pytest.mark.parametrize("dtype", ["int8", pytest.param("nf4", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "option", [pytest.param("--model.layers=transformer_blocks.0", marks=pytest.mark.slow), "--model.adapter.rank=4"]
)
def test_a_quantised_base_trains_without_further_options(quickstart, demo, tmp_path, option, dtype):
    words = [
        *quickstart(trainer__max_steps=4),
        option,
        f"--model.memory.base_dtype={dtype}",
        "--overfit_stopping.restore=last",
    ]
    assert main(words) == 0
    assert all(0 < loss < 10 for loss in column(run_of(tmp_path), "train/loss").values())
    checkpoint = torch.load(run_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in checkpoint["state_dict"].values()} == {torch.float32}
    if "layers" in option:  # what was not trained leaves with all its digits
        base, left = load_file(demo.dir / "base" / "transformer" / SHAPE), exported(run_of(tmp_path))
        trained = {name.removeprefix("transformer.") for name in checkpoint["state_dict"]}
        assert {name for name, value in base.items() if not torch.equal(left[name], value)} == trained


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "lokr", "tlora"])
def test_a_variant_is_trained_preserved_resumed_and_sampled_from(quickstart, tmp_path, variant, capsys):
    words = ["--model.adapter.rank=4", f"--model.adapter.variant={variant}", "--overfit_stopping.restore=last"]
    words += ["--model.preservation.captions=[a disc]", "--model.preservation.share=1.0"]
    assert main([*quickstart(trainer__max_steps=4), *words]) == 0
    whole = torch.load(run_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert whole["vidlit_model"]["adapter.variant"] == variant
    assert main([*quickstart(trainer__max_steps=2, run__name="halves"), *words]) == 0
    assert main([*quickstart(trainer__max_steps=4, run__name="halves"), *words, "--ckpt_path=last"]) == 0
    again = torch.load(run_of(tmp_path, "halves") / "checkpoints" / "last.ckpt", weights_only=True)
    assert whole["state_dict"].keys() == again["state_dict"].keys()
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in whole["state_dict"].items())
    capsys.readouterr()
    other = [*quickstart(trainer__max_steps=6, run__name="halves"), *words, "--model.adapter.variant=rslora"]
    assert main([*other, "--ckpt_path=last"]) == 2
    assert "model.adapter.variant" in capsys.readouterr().err
    run = run_of(tmp_path)
    weights = run / "weights" / "pytorch_lora_weights.safetensors"
    asked = ["predict", "--config", str(run / "config.yaml"), "--lora", str(weights), "--prompts", "A disc."]
    assert main([*asked, "--samples.num_steps", "1", "--output", str(tmp_path / "made")]) == 0
    assert list((tmp_path / "made").glob("*.mp4"))


def test_an_adapter_is_never_kept_in_bfloat16(quickstart, capsys):
    assert main([*quickstart(), "--model.adapter.rank=4", "--trainer.precision=bf16-true"]) == 2
    assert "--model.memory.base_dtype bfloat16" in capsys.readouterr().err


def test_weights_are_never_kept_in_float16(quickstart, capsys):
    assert main([*quickstart(), "--trainer.precision=16-true"]) == 2
    assert "set bf16-true, or bf16-mixed" in capsys.readouterr().err


def test_encoders_are_not_in_memory_while_training(quickstart, monkeypatch, tmp_path):
    alive = []
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        gc.collect()
        modules = [each for each in gc.get_objects() if isinstance(each, torch.nn.Module)]
        alive.extend(type(each).__name__ for each in modules if isinstance(each, torch.nn.Module))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    assert main(quickstart(data__store=tmp_path / "fresh", trainer__max_steps=2)) == 0
    assert "LTXVideoTransformer3DModel" in alive
    assert not {"T5EncoderModel", "PatchDCTCodec"} & set(alive)


@pytest.mark.slow
def test_slurms_warning_saves_and_leaves(quickstart, tmp_path, monkeypatch, capsys):
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if self.trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(VideoDiffusionModule, "training_step", training_step)
        assert main(quickstart(trainer__max_steps=6)) == 128 + signal.SIGUSR1
    assert "interrupted by SIGUSR1; saved" in capsys.readouterr().err
    checkpoint = torch.load(run_of(tmp_path) / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3
    assert main([*quickstart(trainer__max_steps=6), "--ckpt_path=last"]) == 0
    assert max(column(run_of(tmp_path), "train/loss")) == 6


@pytest.mark.slow
def test_weights_and_moments_in_bfloat16_and_nothing_else(quickstart, tmp_path, monkeypatch):
    """``bf16-true`` was a traceback: Lightning drew the noise levels in bfloat16, too."""
    seen = set()
    forward = VideoDiffusionModule.forward

    def watched(self, noisy, sigmas, conditioning):
        velocity = forward(self, noisy, sigmas, conditioning)
        (weights,) = {parameter.dtype for parameter in self.transformer.parameters()}
        seen.add((weights, noisy.dtype, sigmas.dtype, torch.get_default_dtype()))
        return velocity

    monkeypatch.setattr(VideoDiffusionModule, "forward", watched)
    options = {"trainer__precision": "bf16-true", "samples__num_videos": 1, "samples__num_steps": 2}
    assert main(quickstart(**options, trainer__max_steps=8)) == 0
    run = run_of(tmp_path)
    assert seen == {(torch.bfloat16, torch.float32, torch.float32, torch.float32)}
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert {value.dtype for value in checkpoint["state_dict"].values()} == {torch.bfloat16}
    (moments,) = {state["exp_avg"].dtype for state in checkpoint["optimizer_states"][0]["state"].values()}
    assert moments == torch.bfloat16
    assert {value.dtype for value in exported(run).values()} == {torch.bfloat16}
    curve = column(run, "val/log_ratio")
    assert curve[8] < curve[4] < 0
    assert main([*quickstart("validate", **options), f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert main([*quickstart(**options, trainer__max_steps=10), "--ckpt_path=last"]) == 0
    assert list(column(run, "train/loss")) == list(range(1, 11))
    assert {value.dtype for value in exported(run).values()} == {torch.bfloat16}


def test_speed_memory_and_utilisation_are_logged(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = run_of(tmp_path)
    for name in ("perf/mfu", "perf/tokens_per_s", "perf/data_wait", "perf/peak_memory_gb"):
        assert set(column(run, name)) == {1, 2, 3, 4}, name
    assert all(0 < value < 1.5 for value in column(run, "perf/mfu").values())
    assert all(0.1 < value < 20 for value in column(run, "perf/peak_memory_gb").values())
