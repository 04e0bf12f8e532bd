"""Something that is denoised with the picture: noise, velocity and loss of its own, in training, checks and samples.

The family is LTX-Video, told that its clips have a "sound": a latent for each frame, which is added to the frame's
tokens and predicted from them. What is tested is the way through the store, :class:`Family`, the loss and the module.
"""

import csv
from types import SimpleNamespace

import pytest
import torch

from tests.models.batches import batch_of
from vidlit.__main__ import main
from vidlit.diffusion.conditions import Condition
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import RectifiedFlow, stratum_noise, stratum_sigmas, training_noise
from vidlit.diffusion.streams import LATENTS, Stream
from vidlit.models.encoders import VideoEncoder
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.models.family import open_family
from vidlit.training.flops import flops_of_a_sample
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.open_parts import OpenParts

SIZE = (9, 32, 32)
FLOW = RectifiedFlow()
STREAMS = [LATENTS, "sound"]


class WithSound(VideoEncoder):
    def __call__(self, video):
        encoded = super().__call__(video)
        return {**encoded, "sound": encoded["latents"].amax(dim=(3, 4))}


@pytest.fixture
def family(demo, monkeypatch):
    velocity = LTXVideo.velocity

    def of_both(self, transformer, noisy, sigmas, conditioning):
        heard = noisy + conditioning.extras["sound"][..., None, None]
        predicted = velocity(self, transformer, heard, sigmas, conditioning)
        return {"latents": predicted, "sound": predicted.mean(dim=(3, 4))}

    def shapes(self, *size):
        latents = self.latent_shape(*size)
        return {"latents": latents, "sound": latents[:2]}

    monkeypatch.setattr(LTXVideo, "velocity", of_both)
    monkeypatch.setattr(LTXVideo, "stream_shapes", shapes)
    streams = Stream(title="video"), Stream("sound", loss_weight=0.5, title="audio", weights="proj_out")
    monkeypatch.setattr(LTXVideo, "streams", streams)
    monkeypatch.setattr(LTXVideo, "clip_extras", ("sound",))
    monkeypatch.setattr(LTXVideo, "clip_recipe", "the largest latent of each frame")
    monkeypatch.setattr(LTXVideo, "load_video_encoder", lambda self, *given: WithSound(self, *given))
    return open_family(demo.dir / "base")


@pytest.fixture
def batch(family):
    return batch_of(family, SIZE)


@pytest.fixture
def module(family):
    made = VideoDiffusionModule(str(family.base))
    made.configure_model()
    return made


class Recorder:
    """Predicts functions of its input, and remembers what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, noisy, sigmas, conditioning):
        self.calls.append((noisy, sigmas, conditioning.extras["sound"], conditioning.levels.get("sound")))
        return {"latents": 0.3 * noisy, "sound": 0.2 * conditioning.extras["sound"]}


@pytest.mark.parametrize("by_frame", [False, True])
def test_every_stream_is_noised_at_a_level_of_its_own_and_scored_alone(batch, by_frame):
    levels = torch.tensor([0.4, 0.9])
    sigmas = torch.tensor([0.2, 0.7])
    if by_frame:  # the first clip's first frame is given
        sigmas = sigmas[:, None].repeat(1, batch.latents.shape[2])
        sigmas[0, 0] = 0
    noise, _ = training_noise(FLOW, 0, 0, range(2), {name: batch.stream(name).shape[1:] for name in STREAMS})
    model = Recorder()
    losses = denoising_loss(model, FLOW, batch, noise, {"latents": sigmas, "sound": levels})
    ((noisy, _, heard, level_of_sound),) = model.calls
    assert torch.equal(level_of_sound, levels)
    clean, level = batch.conditioning.extras["sound"], levels[:, None, None]
    torch.testing.assert_close(heard, (1 - level) * clean + level * noise["sound"])
    expected = (0.2 * heard - (noise["sound"] - clean)).square().mean(dim=(1, 2))
    torch.testing.assert_close(losses["sound"], expected)
    picture = denoising_loss(lambda *_: 0.3 * noisy, FLOW, batch, noise["latents"], sigmas)
    assert torch.equal(losses["latents"], picture)


def test_each_stream_has_noise_of_its_own_and_the_pictures_is_what_it_was(batch):
    shape = tuple(batch.latents.shape[1:])
    both, sigmas = training_noise(
        FLOW, 3, 5, range(2), {"latents": shape, "sound": shape}, conditions=[Condition(share=0.5)]
    )
    alone, same = training_noise(FLOW, 3, 5, range(2), {"latents": shape}, conditions=[Condition(share=0.5)])
    assert torch.equal(both["latents"], alone["latents"])
    assert torch.equal(sigmas["latents"], same["latents"])
    assert not torch.equal(sigmas["latents"], sigmas["sound"])
    assert not torch.equal(both["sound"], both["latents"])
    keys = torch.tensor([1, 2])
    assert not torch.equal(stratum_noise(0, keys, 0, shape), stratum_noise(0, keys, 0, shape, "sound"))


def test_paired_losses_of_every_stream_belong_to_the_clip(batch):
    model = Recorder()
    losses = paired_losses(model, FLOW, batch, seed=3, num_strata=4, streams=STREAMS)
    assert {name: each.shape for name, each in losses.items()} == {name: (2, 4) for name in STREAMS}
    sigmas = stratum_sigmas(FLOW, batch.keys, [batch.latents[0, 0].numel()] * 2, 4)
    for stratum, (noisy, asked, heard, of_sound) in enumerate(model.calls):
        assert torch.equal(asked, sigmas[:, stratum])
        level = of_sound[:, None, None]
        noise = stratum_noise(3, batch.keys, stratum, tuple(heard.shape[1:]), "sound")
        torch.testing.assert_close(heard, (1 - level) * batch.conditioning.extras["sound"] + level * noise)
        picture = stratum_noise(3, batch.keys, stratum, tuple(noisy.shape[1:]))
        torch.testing.assert_close(noisy, FLOW.add_noise(batch.latents, picture, asked))
    row = batch._replace(latents=batch.latents[1:], conditioning=batch.conditioning.of_rows([1]), keys=batch.keys[1:])
    alone = paired_losses(Recorder(), FLOW, row, seed=3, num_strata=4, streams=STREAMS)
    for name in STREAMS:
        torch.testing.assert_close(alone[name][0], losses[name][1])


def test_noise_for_other_streams_than_the_model_predicts_is_refused(batch):
    with pytest.raises(ValueError, match="'sound'"):
        denoising_loss(Recorder(), FLOW, batch, torch.randn(batch.latents.shape), torch.tensor([0.2, 0.7]))


def attach(module, monkeypatch):
    monkeypatch.setattr(module, "log_dict", lambda *_, **__: None)
    options = {"global_step": 0, "global_rank": 0, "world_size": 1, "precision": "32-true"}
    options["distributed_sampler_kwargs"] = None
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    module._trainer = SimpleNamespace(fit_loop=loop, accumulate_grad_batches=1, **options)


def test_training_adds_the_losses_by_their_weights_and_every_one_has_a_gradient(module, batch, monkeypatch):
    attach(module, monkeypatch)

    def step(*weights):
        streams = tuple(Stream(name, weight) for name, weight in zip(STREAMS, weights, strict=True))
        monkeypatch.setattr(LTXVideo, "streams", streams)
        module.parts = OpenParts(module.family.parts, module.seed)
        module.zero_grad()
        loss = module.training_step(batch, 0)["loss"]
        loss.backward()
        return loss.detach(), torch.cat([each.grad.flatten() for each in module.trainable_state().values()])

    picture, sound, both = step(1.0, 0.0), step(0.0, 1.0), step(1.0, 0.5)
    for of_picture, of_sound, of_both in zip(picture, sound, both, strict=True):
        assert of_picture.abs().max() > 0
        assert of_sound.abs().max() > 0
        torch.testing.assert_close(of_both, of_picture + 0.5 * of_sound, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_validation_scores_every_stream_by_itself(module, batch):
    module.eval()
    scored = module.validation_step(batch, 0)
    expected = paired_losses(module, module.noising, batch, 0, module.num_strata, streams=STREAMS)
    assert torch.equal(scored["video"], expected["latents"])
    assert torch.equal(scored["audio"], expected["sound"])


def test_a_stream_that_is_done_is_trained_no_more(module, batch, monkeypatch):
    """Its loss is left out, and the others' move none of its layers."""
    attach(module, monkeypatch)
    module.parts.done.add("audio")
    module.training_step(batch, 0)["loss"].backward()
    module.parts.drop_gradients(module.named_parameters())
    has_gradient = {name: each.grad is not None for name, each in module.trainable_state().items()}
    assert has_gradient == {name: "proj_out" not in name for name in has_gradient}
    assert not all(has_gradient.values())
    assert module.validation_step(batch, 0).keys() == {"video"}


@torch.no_grad()
def test_streams_are_put_together_again_where_samples_go_one_by_one(family, monkeypatch):
    batch = batch_of(family, SIZE, ("A red disc.", "x", "A red ring."))
    transformers, sigmas = {"transformer": family.load_transformer().eval()}, torch.tensor([0.2, 0.5, 0.9])
    expected = family.predict(transformers, batch.latents, sigmas, batch.conditioning)
    monkeypatch.setattr(LTXVideo, "needs_equal_prompts", True)
    made = family.predict(transformers, batch.latents, sigmas, batch.conditioning)
    for name in STREAMS:
        torch.testing.assert_close(made[name], expected[name], atol=1e-5, rtol=1e-4)


def test_all_streams_are_sampled_in_step_from_noise_alone(family, batch):
    clean = {name: batch.stream(name) for name in STREAMS}
    noise = {name: torch.randn(value.shape) for name, value in clean.items()}
    asked = []

    def model(noisy, sigmas, conditioning):
        asked.append((sigmas[0], conditioning.extras["sound"]))
        return {name: noise[name] - clean[name] for name in STREAMS}

    made = generate(model, family.load_scheduler(4, 8), noise, batch.conditioning, batch.conditioning, 2.0)
    for name in STREAMS:
        torch.testing.assert_close(made[name], clean[name], atol=1e-5, rtol=1e-4)
    for sigma, heard in asked:  # the clip's own sound is never told
        torch.testing.assert_close(heard, (1 - sigma) * clean["sound"] + sigma * noise["sound"], atol=1e-5, rtol=1e-4)


def test_sound_is_no_image_to_start_from(family):
    assert family.image_extras == ()


def test_operations_are_counted(module, batch):
    assert flops_of_a_sample(module.family, module.structure(), batch) > 0


@pytest.mark.slow
def test_a_run_from_clips_to_samples(family, quickstart, tmp_path):
    options = {"data__store": tmp_path / "store", "trainer__max_steps": 4, "trainer__val_check_interval": 2}
    assert main(quickstart(**options, samples__num_audit=2, samples__audit_steps=2)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(bool(row["val/loss"]) for row in rows) >= 2
    assert list(run.glob("samples/*/*.mp4"))
