"""Mochi against diffusers' own pipeline."""

import diffusers
import pytest
import torch

from tests.models.bases import mochi
from tests.models.batches import whole_mask
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate
from vidlit.models.family import open_family

NUM_FRAMES, HEIGHT, WIDTH = 13, 32, 48
SHAPE = (12, 3, 4, 6)
CAPTIONS = ["A red disc.", "A medium striped grey and black ring moves in a circle before a blue background.", "x"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return mochi(tmp_path_factory.mktemp("mochi") / "base")


@pytest.fixture(scope="module")
def family(base):
    return open_family(base)


@pytest.fixture(scope="module")
def pipeline(base):
    made = diffusers.DiffusionPipeline.from_pretrained(base)
    made.set_progress_bar_config(disable=True)
    made.transformer.eval()
    return made


def conditioning_of(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return Conditioning.of([{"prompt_embeds": torch.randn(n, 64, generator=generator)} for n in (4, 9, 6)])


def padded(conditioning, length=256):
    """As the pipeline hands prompts over."""
    missing = length - conditioning.prompt_embeds.shape[1]
    return {
        "prompt_embeds": torch.nn.functional.pad(conditioning.prompt_embeds, (0, 0, 0, missing), value=0.7),
        "prompt_attention_mask": torch.nn.functional.pad(whole_mask(conditioning), (0, missing)),
    }


def test_sizes_are_asked_of_the_vae(family, pipeline):
    assert family.compression == (pipeline.vae_temporal_scale_factor, pipeline.vae_spatial_scale_factor) == (6, 8)
    assert family.pixel_multiple == 16
    assert family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == SHAPE


@torch.no_grad()
def test_velocity_is_the_way_the_pipelines_scheduler_goes_backwards(family, pipeline):
    """One step of the pipeline's scheduler with its transformer's output moves latents by minus our velocity."""
    conditioning = conditioning_of()
    noisy = torch.randn(3, *SHAPE)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    for given in (0.9, 0.5, 0.1):
        scheduler.set_timesteps(sigmas=[given, 0.05])
        timestep = scheduler.timesteps[0]
        prediction = pipeline.transformer(
            hidden_states=noisy,
            timestep=timestep.expand(3),
            encoder_hidden_states=padded(conditioning)["prompt_embeds"],
            encoder_attention_mask=padded(conditioning)["prompt_attention_mask"],
            return_dict=False,
        )[0]
        moved = scheduler.step(prediction, timestep, noisy, return_dict=False)[0]
        velocity = family.velocity(pipeline.transformer, noisy, torch.full((3,), given), conditioning)
        torch.testing.assert_close(noisy + (0.05 - given) * velocity, moved, atol=1e-5, rtol=1e-4)
        assert (moved - noisy).abs().mean() > 1e-2


def test_sigmas_are_drawn_uniformly_as_in_the_official_trainer(family):
    probability = torch.linspace(0, 1, 11)
    torch.testing.assert_close(family.noising().at(1000).quantile(probability), probability)


class Oracle(torch.nn.Module):
    """Predicts, by Mochi's conventions, what leads from noise to known latents."""

    def __init__(self, latents, noise):
        super().__init__()
        self.direction = latents - noise
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *, timestep, **_):
        self.timestep = timestep
        return (self.direction,)


@torch.no_grad()
def test_a_true_prediction_gives_the_latents_back_in_one_step(family):
    latents, noise = torch.randn(2, 3, *SHAPE)
    sigmas = torch.tensor([0.1, 0.5, 1.0])
    noisy = family.noising().add_noise(latents, noise, sigmas)
    oracle = Oracle(latents, noise)
    velocity = family.velocity(oracle, noisy, sigmas, conditioning_of())
    torch.testing.assert_close(noisy - sigmas.view(-1, 1, 1, 1, 1) * velocity, latents)
    torch.testing.assert_close(oracle.timestep, torch.tensor([900.0, 500.0, 0.0]))


@torch.no_grad()
@pytest.mark.parametrize("what", ["sigma", "prompt", "mask", "position"])
def test_velocity_depends_on_everything_it_is_given(family, pipeline, what):
    noisy, sigmas, conditioning = torch.randn(3, *SHAPE), torch.full((3,), 0.5), conditioning_of()
    before = family.velocity(pipeline.transformer, noisy, sigmas, conditioning)
    undo = torch.nn.Identity()
    if what == "sigma":
        sigmas = sigmas * 0.5
    elif what == "prompt":
        conditioning = conditioning._replace(prompt_embeds=conditioning.prompt_embeds.flip(1))
    elif what == "mask":
        conditioning = conditioning._replace(prompt_attention_mask=torch.ones_like(whole_mask(conditioning)))
    else:
        noisy, undo = noisy.flip(2), lambda velocity: velocity.flip(2)
    after = undo(family.velocity(pipeline.transformer, noisy, sigmas, conditioning))
    assert (after - before).abs().mean() > 1e-4


@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_the_pipeline_does(family, pipeline, monkeypatch):
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH) * 2 - 1
    latents = family.load_video_encoder("cpu")(video)["latents"]
    assert latents.shape[1:] == SHAPE
    config = pipeline.vae.config
    mean, std = (torch.tensor(value).view(1, 12, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
    raw = pipeline.vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(latents * std / config.scaling_factor + mean, raw, atol=1e-5, rtol=1e-5)
    assert (latents - raw).abs().mean() > 1e-2
    # The pipeline's own way from latents to pixels, with a transformer that moves nothing.
    monkeypatch.setattr(pipeline.transformer, "forward", lambda hidden_states, **_: (torch.zeros_like(hidden_states),))
    expected = pipeline(
        **padded(conditioning_of()),
        latents=torch.cat([latents, latents[:1]]),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="pt",
    ).frames
    decoded = family.decode_latents(pipeline.vae, latents)
    assert decoded.shape == video.shape
    torch.testing.assert_close(((decoded + 1) / 2).clamp(0, 1).transpose(1, 2), expected[:2], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_large_videos_are_decoded_in_tiles(family):
    vae = family.load_vae("cpu")
    vae.tile_sample_min_height = vae.tile_sample_min_width = 32
    vae.tile_sample_stride_height = vae.tile_sample_stride_width = 16
    latents = torch.randn(1, 12, 2, 6, 6)
    config = vae.config
    mean, std = (torch.tensor(value).view(1, 12, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
    raw = latents * std / config.scaling_factor + mean
    made = family.decode_latents(vae, latents)
    torch.testing.assert_close(made, vae.tiled_decode(raw).sample)
    assert (made - vae.decode(raw).sample).abs().max() > 1e-3  # and whole again afterwards


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_generate_against_a_run_of_the_pipeline(family, pipeline, scale):
    conditioning, null = conditioning_of(), conditioning_of(seed=2)
    noise = torch.randn(3, *SHAPE)
    negative = {f"negative_{name}": value for name, value in padded(null).items()}
    expected = pipeline(
        **padded(conditioning) | negative,
        latents=noise,
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=4,
        guidance_scale=scale,
        output_type="latent",
    ).frames

    def model(*inputs):
        return family.velocity(pipeline.transformer, *inputs)

    made = generate(model, family.load_scheduler(4, 72), noise, conditioning, null, scale)
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_those_of_the_pipeline(family, pipeline):
    embeds, mask, _, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, device="cpu")
    made = family.load_prompt_encoder("cpu")([*CAPTIONS, "a" * 500])
    for row, each in enumerate(made[:3]):
        torch.testing.assert_close(each["prompt_embeds"], embeds[row][mask[row]], atol=1e-5, rtol=1e-4)
    assert made[3]["prompt_embeds"].shape == (256, 64)


@torch.no_grad()
def test_some_bases_read_no_token_of_the_empty_prompt(tmp_path):
    base = mochi(tmp_path / "base", force_zeros_for_empty_prompt=True)
    family, pipeline = open_family(base), diffusers.DiffusionPipeline.from_pretrained(base)
    embeds, mask, _, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False, device="cpu")
    assert not mask.any()
    made = family.load_prompt_encoder("cpu")(["", "a"])
    assert len(made[0]["prompt_embeds"]) == 0
    noisy, sigmas = torch.randn(1, *SHAPE), torch.tensor([0.5])
    expected = family.velocity(pipeline.transformer, noisy, sigmas, Conditioning(embeds, mask, {}))
    for beside in ([], made[1:]):  # alone, and padded to the length of another
        conditioning = Conditioning.of([made[0], *beside])
        num = 1 + len(beside)
        velocity = family.velocity(pipeline.transformer, noisy.expand(num, *SHAPE), sigmas.expand(num), conditioning)
        torch.testing.assert_close(velocity[:1], expected, atol=1e-5, rtol=1e-4)
