"""The module in real runs: what a batch is, what validation may and may not change, which checkpoints fit."""

import csv
import itertools
import json
import weakref
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from safetensors.torch import load_file

import vidlit.training.step.objective
from tests.models import bases
from vidlit.__main__ import main
from vidlit.data.batching import Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.conditions import Condition
from vidlit.errors import UserError
from vidlit.lightning_internals import settle_ddp
from vidlit.models.adapters import LoRA
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.posterior import draw_conditioning, draw_latents


def metrics_of(run):
    with (run / "metrics.csv").open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def column(run, name):
    return {int(row["step"]): row[name] for row in metrics_of(run) if name in row}


def test_batches_clips_and_exposures_of_a_real_run(quickstart, tmp_path, monkeypatch):
    seen, modules, varied = [], [], []
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        modules.append(self.trainer.datamodule)
        seen.append((tuple(batch.latents.shape[2:]), batch.indices.tolist(), len(batch.conditioning.prompt_embeds)))
        return step(self, batch, batch_idx)

    def augment_conditioning(self, conditioning, generators):
        varied.append(len(generators))
        return conditioning

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    monkeypatch.setattr(LTXVideo, "augment_conditioning", augment_conditioning)
    assert main(quickstart(data__split__val_fraction=0.34)) == 0
    data = modules[0]
    assert varied == [2] * 12  # in training alone

    # exactly batch_size samples of one resolution, no clip twice, every resolution in turn
    assert len(seen) == 12
    for shape, rows, prompts in seen:
        assert len(rows) == prompts == len(set(rows)) == 2
        assert {data.family.latent_shape(*data.train_clips[row].bucket)[1:] for row in rows} == {shape}
    buckets = {clip.bucket for clip in data.train_clips}
    assert len(buckets) > 1
    assert len({shape for shape, *_ in seen}) == len(buckets)

    # no group on both sides
    groups = {name: {clip.source.group for clip in getattr(data, f"{name}_clips")} for name in ("train", "val")}
    assert groups["train"]
    assert groups["val"]
    assert not groups["train"] & groups["val"]
    assert {clip.clip_id for clip in data.train_eval_clips} <= {clip.clip_id for clip in data.train_clips}
    assert len(data.train_clips) + len(data.val_clips) == len(data.plan.clips) == 12

    # the ledger says what really happened
    counted = dict.fromkeys((clip.clip_id for clip in data.train_clips), 0)
    for _, rows, _ in seen:
        for row in rows:
            counted[data.train_clips[row].clip_id] += 1
    with (tmp_path / "runs" / "quickstart" / "0" / "exposure.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert {row["clip_id"]: int(row["exposures"]) for row in written if row["split"] == "train"} == counted
    assert {row["video"] for row in written if row["split"] == "val"} == groups["val"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "kept", "tested"),
    [([], [0, 1], [0, 0]), (["--model.adapter.rank=4"], [0], [0]), (["--model.ema.decay=0.9"], [0, 1], [0, 0])],
)
def test_the_base_is_loaded_again_for_whole_weights_alone(quickstart, tmp_path, monkeypatch, options, kept, tested):
    """Where the base is kept at the end of a fit, and where a test scores it: it may be most of the memory.

    Of a LoRA the start is remembered. Whole weights are put back in place, for the optimizer still holds them: what
    they come from is in main memory meanwhile, beside those on the device. A test lets go of them first.
    """
    there, loads = [], []
    load = LTXVideo.load_transformer

    def watched(self, *args):
        loads.append(sum(reference() is not None for reference in there))
        transformer = load(self, *args)
        there.append(weakref.ref(transformer))
        return transformer

    monkeypatch.setattr(LTXVideo, "load_transformer", watched)
    few = {"data__buckets": "[9x48x48]", "data__split__test_fraction": 0.34, "data__split__val_fraction": 0.2}
    words = quickstart(**few, model__warmup_steps=0, trainer__max_steps=4)
    assert main([*words, "--model.optimizer.init_args.lr=1.0", "--trainer.gradient_clip_val=null", *options]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert json.loads((run / "summary.json").read_text())["kept"] == "base model"
    assert loads == kept
    there.clear(), loads.clear()
    assert main([*quickstart("test", **few), *options, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    assert loads == tested


@pytest.mark.slow
def test_validation_numbers_do_not_depend_on_the_batch_size(quickstart, tmp_path):
    for size in (1, 5):
        assert main(quickstart(data__batches__val_size=size, trainer__max_steps=8)) == 0
    first, second = (tmp_path / "runs" / "quickstart" / str(number) for number in (0, 1))
    names = {
        name for row in metrics_of(first) for name in row if name.startswith(("val/", "train_eval/", "divergence/"))
    }
    assert {"val/loss", "val/log_ratio", "val/log_ratio_bin_0", "train_eval/loss", "divergence/gap"} <= names
    for name in names:
        assert column(first, name) == pytest.approx(column(second, name), rel=1e-5, abs=1e-6), name
    assert column(first, "train/loss") == column(second, "train/loss")


@pytest.mark.slow
def test_weights_are_the_same_with_and_without_validation(quickstart, tmp_path):
    """Bit for bit: a check draws from no generator that training draws from."""
    last = "--overfit_stopping.restore=last"
    assert main([*quickstart(trainer__val_check_interval=2), last]) == 0
    assert main([*quickstart(trainer__val_check_interval=1_000_000), last]) == 0
    with_checks, without = (tmp_path / "runs" / "quickstart" / str(number) for number in (0, 1))
    assert list(column(with_checks, "val/loss")) == [0, 2, 4, 6, 8, 10, 12]
    assert list(column(without, "val/loss")) == [0]
    assert column(with_checks, "train/loss") == column(without, "train/loss")
    trained, again = (
        load_file(run / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
        for run in (with_checks, without)
    )
    assert trained.keys() == again.keys()
    for name, value in trained.items():
        assert torch.equal(value, again[name]), name


def test_a_run_too_short_for_a_check_keeps_what_it_trained(quickstart, demo, tmp_path):
    assert main(quickstart(trainer__val_check_interval=1_000_000, trainer__max_steps=3)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    name = "diffusion_pytorch_model.safetensors"
    trained = load_file(run / "weights" / "transformer" / name)
    base = load_file(demo.dir / "base" / "transformer" / name)
    assert any(not torch.equal(trained[key], base[key]) for key in base)


def test_the_last_checkpoint_holds_the_last_step(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=6)) == 0  # checks at step 4 only
    checkpoint = torch.load(tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6


def test_an_adapter_is_trained_and_exported_from_the_command_line(quickstart, demo, tmp_path):
    lora = ["--model.adapter.rank=4", "--model.adapter.alpha=8"]
    assert main([*quickstart(trainer__max_steps=4), *lora]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    stored = load_file(run / "weights" / "pytorch_lora_weights.safetensors")
    assert {value.shape[0] for name, value in stored.items() if "lora_A" in name} == {4}
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert json.loads((run / "summary.json").read_text())["kept_step"] == checkpoint["global_step"]
    assert all("lora_" in name for name in checkpoint["state_dict"])  # the frozen base is left out
    for name, value in stored.items():
        key = name.replace(".lora_A.weight", ".lora_A.default.weight").replace(
            ".lora_B.weight", ".lora_B.default.weight"
        )
        assert torch.equal(value, checkpoint["state_dict"][key]), name


@pytest.fixture
def module(demo):
    def make(**options):
        made = VideoDiffusionModule(str(demo.dir / "base"), fps=16, **options)
        made.configure_model()
        return made

    return make


@pytest.mark.parametrize(
    ("saved", "loaded", "words"),
    [
        ({"adapter": LoRA(rank=4)}, {"adapter": LoRA(rank=8)}, ["64 of 64 trained weights", "lora_A", "0 are unknown"]),
        ({}, {"adapter": LoRA(rank=4)}, ["64 of 64 trained weights", "lora_A"]),
        ({"adapter": LoRA(rank=4)}, {}, ["64 are unknown", "lora_A"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_what_differs(module, saved, loaded, words):
    source = module(**saved)
    checkpoint = {"state_dict": dict(source.state_dict())}
    source.on_save_checkpoint(checkpoint)
    with pytest.raises(UserError, match="does not fit this model") as caught:
        module(**loaded).on_load_checkpoint(checkpoint)
    for word in words:
        assert word in str(caught.value)
    module(**saved).on_load_checkpoint(checkpoint)  # its own fits


def test_resuming_with_a_checkpoint_that_does_not_fit_is_one_line(quickstart, tmp_path, capsys):
    lora = "--model.adapter.rank=4"
    assert main([*quickstart(trainer__max_steps=4), lora]) == 0
    capsys.readouterr()
    assert main([*quickstart("validate"), "--ckpt_path=last", "--model.adapter.rank=8"]) == 2
    error = capsys.readouterr().err
    assert "vidlit: error: The checkpoint does not fit this model" in error
    assert "Traceback" not in error


def test_the_adapter_starts_from_the_seed_alone(module):
    torch.manual_seed(1)
    first = module(adapter=LoRA(rank=4)).trainable_state()
    torch.manual_seed(2)
    again = module(adapter=LoRA(rank=4)).trainable_state()
    other = module(adapter=LoRA(rank=4), seed=1).trainable_state()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_gradient_checkpointing_gives_the_same_gradients(module):
    gradients = []
    for checkpointing in (False, True):
        made = module(memory=Memory(gradient_checkpointing=checkpointing))
        generator = torch.Generator().manual_seed(0)
        noisy = torch.randn(2, 64, 2, 3, 5, generator=generator)
        prompts = Conditioning(torch.randn(2, 4, 64, generator=generator), torch.ones(2, 4, dtype=torch.bool), {})
        made(noisy, torch.tensor([0.3, 0.7]), prompts).square().mean().backward()
        gradients.append({name: value.grad for name, value in made.named_parameters()})
    for name, value in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], value, atol=1e-6, rtol=1e-4)


@pytest.fixture(scope="module")
def vae_base(tmp_path_factory):
    """A base whose VAE has a posterior with some width."""
    return bases.ltx_video(tmp_path_factory.mktemp("posterior") / "base")


@pytest.mark.slow
def test_latents_are_drawn_anew_at_each_visit_and_in_training_alone(quickstart, vae_base, tmp_path, monkeypatch):
    drawn, scored = [], []
    loss = vidlit.training.step.objective.denoising_loss

    class Spied(VideoDiffusionModule):
        def training_step(self, batch, batch_idx):
            self.modes = batch.latents.float()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            scored.append((batch.latents, batch.conditioning.extras))
            return super().validation_step(batch, batch_idx, dataloader_idx)

    def denoising_loss(model, noising, batch, *given):
        drawn.append((batch.keys.tolist(), batch.latents.float() - model.modes, batch.conditioning.extras))
        return loss(model, noising, batch, *given)

    monkeypatch.setattr("vidlit.commands.cli.lightning_cli.VideoDiffusionModule", Spied)
    monkeypatch.setattr(vidlit.training.step.objective, "denoising_loss", denoising_loss)

    def run(name, latents, *further, **options):
        drawn.clear(), scored.clear()
        options = {
            "data__store": tmp_path / "store",
            "model__base": vae_base,
            "data__encoding__posterior": latents,
        } | options
        assert main([*quickstart(run__name=name, **options), "--overfit_stopping.restore=last", *further]) == 0
        return list(drawn), list(scored)

    mode, at_mode = run("mode", "mode")
    whole, at_sample = run("whole", "sample")
    start, _ = run("cut", "sample", trainer__max_steps=5)
    rest, _ = run("cut", "sample", "--ckpt_path=last")

    # no batch and no check has another clip or another conditioning; only training has other latents
    assert [keys for keys, *_ in mode] == [keys for keys, *_ in whole] == [keys for keys, *_ in start + rest]
    assert not any(extras for *_, extras in mode + whole + at_mode + at_sample)
    for (latents, _), (others, _) in zip(at_mode, at_sample, strict=True):
        assert torch.equal(latents, others)
    assert all((offset == 0).all() for _, offset, _ in mode)
    runs = [tmp_path / "runs" / name / "0" for name in ("mode", "whole")]
    assert column(runs[0], "val/loss")[0] == column(runs[1], "val/loss")[0]
    assert column(runs[0], "train/loss")[1] != column(runs[1], "train/loss")[1]

    visits = {}
    for keys, offsets, _ in whole:
        for key, offset in zip(keys, offsets, strict=True):
            assert offset.std() > 0.1
            assert all(not torch.equal(offset, other) for other in visits.setdefault(key, []))
            visits[key].append(offset)
    assert len(visits[keys[0]]) > 1

    # a resumed run draws what the uninterrupted one did
    for (_, offset, _), (_, other, _) in zip(whole, start + rest, strict=True):
        assert torch.equal(offset, other)


def test_drawn_latents_depend_on_the_row_of_the_global_batch_and_not_on_its_rank(module):
    model = module()
    latents, std = torch.zeros(4, 2, 3, 4, 5, dtype=torch.bfloat16), torch.ones(4, 2, 3, 4, 5, dtype=torch.bfloat16)

    def draw(*rows, position=7):
        part = list(rows)
        conditioning = Conditioning(torch.zeros(len(part), 1, 1), torch.ones(len(part), 1), {"latents_std": std[part]})
        batch = LatentBatch(latents[part], conditioning, torch.tensor(part), torch.tensor(part))
        return draw_latents(model.family, batch, model.seed, position, rows).latents

    whole = draw(0, 1, 2, 3)
    assert torch.equal(torch.cat([draw(0, 1), draw(2, 3)]), whole)
    assert len({row.sum().item() for row in [*whole, *draw(0, 1, 2, 3, position=8)]}) == 8
    assert whole.std().item() == pytest.approx(1, abs=0.1)


def test_a_family_may_vary_the_conditioning_of_training_samples(module, monkeypatch):
    """By generators of its own, the same for a row of the global batch whichever rank holds it."""
    model = module()
    latents, conditioning = torch.zeros(4, 2, 3, 4, 5), Conditioning(torch.zeros(4, 1, 1), torch.ones(4, 1), {})

    def draw(*rows, position=7):
        part = list(rows)
        batch = LatentBatch(latents[part], conditioning.of_rows(part), torch.tensor(part), torch.tensor(part))
        return draw_conditioning(model.family, batch, model.seed, position, rows).conditioning

    assert torch.equal(draw(0, 1).prompt_embeds, conditioning.prompt_embeds[:2])  # this family does not

    def drawn(self, conditioning, generators):
        return conditioning.with_extras({"drawn": torch.stack([torch.rand((), generator=each) for each in generators])})

    monkeypatch.setattr(type(model.family), "augment_conditioning", drawn)
    whole = draw(0, 1, 2, 3).extras["drawn"]
    assert torch.equal(torch.cat([draw(0, 1).extras["drawn"], draw(2, 3).extras["drawn"]]), whole)
    assert len({*whole.tolist(), *draw(0, 1, 2, 3, position=8).extras["drawn"].tolist()}) == 8


def test_latents_of_a_codec_without_spread_cannot_be_drawn(quickstart, capsys):
    assert main(quickstart(data__encoding__posterior="sample")) == 2
    assert "data.encoding.posterior is sample, but the VAE of" in capsys.readouterr().err


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_training_samples_is_given_its_first_frame(quickstart, monkeypatch, share):
    """As ``model.noise.first_frame`` said it before there were other conditions."""
    asked = []

    class Asked(VideoDiffusionModule):
        def forward(self, noisy, sigmas, conditioning, expert=None):
            if self.training:
                asked.append(sigmas if sigmas.dim() == 2 else sigmas[:, None].expand(-1, noisy.shape[2]))
            return super().forward(noisy, sigmas, conditioning, expert)

    monkeypatch.setattr("vidlit.commands.cli.lightning_cli.VideoDiffusionModule", Asked)
    assert main(quickstart(model__noise__first_frame=share, trainer__max_steps=4, data__batches__size=4)) == 0
    given = torch.cat([sigmas[:, 0] == 0 for sigmas in asked])
    assert len(given) == 16
    assert all((sigmas[:, 1:] == sigmas[:, 1:2]).all() and (sigmas[:, 1:] > 0).all() for sigmas in asked)
    assert given.sum() in {0.0: range(1), 0.5: range(4, 13), 1.0: range(16, 17)}[share]


def test_conditions_that_a_base_cannot_take_are_refused(demo, tmp_path):
    with pytest.raises(UserError, match=r"model\.conditions gives some samples frames without noise.*LTX-Video"):
        VideoDiffusionModule(str(bases.wan(tmp_path / "base")), conditions=[Condition(share=0.2)])
    with pytest.raises(UserError, match=r"the shares sum to 1\.1"):
        VideoDiffusionModule(str(demo.dir / "base"), conditions=[Condition(share=0.6), Condition("last", 0.5)])


def rates_of(module, num_steps):
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert configured["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1.0)


def test_warmup_rises_linearly(module):
    assert rates_of(module(warmup_steps=4, optimizer=sgd), 6) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    "schedule",
    [
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 6, gamma=0.1),
        lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20),
    ],
)
def test_warmup_leaves_the_schedule_behind_it_alone(module, schedule):
    rates = rates_of(module(warmup_steps=4, optimizer=sgd, lr_scheduler=schedule), 20)
    assert rates[0] == pytest.approx(0.25)
    assert max(rates) > 0.85
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[3:]))
    assert rates[-1] < 0.2


def test_it_is_a_lightning_module_without_our_command_line(demo, latents, tmp_path):
    """Notebooks use it so: a plain Trainer, no callbacks of ours."""
    data = LatentDataModule(
        demo.dir / "clips",
        latents,
        str(demo.dir / "base"),
        ["9x64x64", "17x48x80"],
        fps=16,
        split=Splitting(val_fraction=0.5),
        batches=Batching(2),
    )
    data.encode(accelerator="cpu", devices=1)
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        default_root_dir=tmp_path,
    )
    model = VideoDiffusionModule(str(demo.dir / "base"), fps=16)
    trainer.fit(model, data)
    assert trainer.global_step == 2


@pytest.mark.parametrize("given", [{}, {"gradient_as_bucket_view": False}, {"find_unused_parameters": True}])
@pytest.mark.parametrize("leaves", [False, True])
def test_gradients_are_views_of_ddps_buckets_unless_told_otherwise(given, leaves):
    strategy = DDPStrategy(**given)
    settle_ddp(SimpleNamespace(strategy=strategy), leaves_parameters=leaves)
    unused = leaves or "find_unused_parameters" in given
    assert strategy._ddp_kwargs == {"gradient_as_bucket_view": True} | given | {"find_unused_parameters": unused}
