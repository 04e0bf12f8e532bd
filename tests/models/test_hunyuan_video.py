"""HunyuanVideo against diffusers' own pipeline."""

import json
import shutil

import diffusers
import pytest
import torch

from tests.models.bases import hunyuan_video
from tests.models.batches import whole_mask
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate
from vidlit.errors import UserError
from vidlit.models.family import open_family

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
SHAPE = (4, 3, 4, 6)
CAPTIONS = ["A red disc.", "A medium striped grey and black ring moves in a circle before a blue background.", "x"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return hunyuan_video(tmp_path_factory.mktemp("hunyuan") / "base")


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
    return Conditioning.of(
        [
            {
                "prompt_embeds": torch.randn(n, 64, generator=generator),
                "pooled_projections": torch.randn(24, generator=generator),
            }
            for n in (4, 9, 6)
        ]
    )


def guided(conditioning, scale):
    return conditioning._replace(extras=conditioning.extras | {"guidance": torch.full((3,), scale)})


def padded(conditioning, length=256):
    """As the pipeline hands prompts over."""
    missing = length - conditioning.prompt_embeds.shape[1]
    return {
        "prompt_embeds": torch.nn.functional.pad(conditioning.prompt_embeds, (0, 0, 0, missing), value=0.7),
        "prompt_attention_mask": torch.nn.functional.pad(whole_mask(conditioning), (0, missing)),
        "pooled_prompt_embeds": conditioning.extras["pooled_projections"],
    }


def test_sizes_are_asked_of_the_vae(family, pipeline):
    assert family.compression == (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial) == (4, 8)
    assert family.pixel_multiple == 16
    assert family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == SHAPE


@torch.no_grad()
@pytest.mark.parametrize("scale", [None, 6.0])
def test_velocity_is_what_the_pipelines_scheduler_is_given(family, pipeline, scale):
    conditioning = conditioning_of()
    noisy = torch.randn(3, *SHAPE)
    scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config)
    scheduler.set_timesteps(sigmas=[0.9, 0.5, 0.1])
    given = padded(conditioning)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        expected = pipeline.transformer(
            hidden_states=noisy,
            timestep=timestep.expand(3),
            encoder_hidden_states=given["prompt_embeds"],
            encoder_attention_mask=given["prompt_attention_mask"].float(),
            pooled_projections=given["pooled_prompt_embeds"],
            guidance=torch.full((3,), 1000.0 * (scale or 1.0)),
            return_dict=False,
        )[0]
        told = conditioning if scale is None else guided(conditioning, scale)
        velocity = family.velocity(pipeline.transformer, noisy, sigma.expand(3), told)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)


class Oracle(torch.nn.Module):
    """Predicts the true velocity of known latents and noise."""

    def __init__(self, latents, noise):
        super().__init__()
        self.direction = noise - latents
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, *, timestep, guidance, **_):
        self.timestep, self.guidance = timestep, guidance
        return (self.direction,)


@torch.no_grad()
def test_a_true_prediction_gives_the_latents_back_in_one_step(family):
    latents, noise = torch.randn(2, 3, *SHAPE)
    sigmas = torch.tensor([0.1, 0.5, 1.0])
    noisy = family.noising().add_noise(latents, noise, sigmas)
    oracle = Oracle(latents, noise)
    velocity = family.velocity(oracle, noisy, sigmas, conditioning_of())
    torch.testing.assert_close(noisy - sigmas.view(-1, 1, 1, 1, 1) * velocity, latents)
    torch.testing.assert_close(oracle.timestep, torch.tensor([100.0, 500.0, 1000.0]))
    assert oracle.guidance.tolist() == [1000.0] * 3  # trained without guidance


@torch.no_grad()
@pytest.mark.parametrize("what", ["sigma", "prompt", "mask", "pooled", "guidance", "position"])
def test_velocity_depends_on_everything_it_is_given(family, pipeline, what):
    noisy, sigmas, conditioning = torch.randn(3, *SHAPE), torch.full((3,), 0.5), conditioning_of()
    before = family.velocity(pipeline.transformer, noisy, sigmas, conditioning)
    undo = torch.nn.Identity()
    if what == "sigma":
        sigmas = sigmas * 0.5
    elif what == "prompt":
        conditioning = conditioning._replace(prompt_embeds=conditioning.prompt_embeds.flip(0))
    elif what == "mask":
        conditioning = conditioning._replace(prompt_attention_mask=torch.ones_like(whole_mask(conditioning)))
    elif what == "pooled":
        extras = {"pooled_projections": conditioning.extras["pooled_projections"].flip(0)}
        conditioning = conditioning._replace(extras=extras)
    elif what == "guidance":
        conditioning = guided(conditioning, 6.0)
    else:
        noisy, undo = noisy.flip(2), lambda velocity: velocity.flip(2)
    after = undo(family.velocity(pipeline.transformer, noisy, sigmas, conditioning))
    assert (after - before).abs().mean() > 1e-5


@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_the_pipeline_does(family, pipeline):
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=generator) * 2 - 1
    latents = family.load_video_encoder("cpu")(video)["latents"]
    assert latents.shape[1:] == SHAPE
    raw = pipeline.vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(latents, 0.5 * raw)
    decoded = family.decode_latents(pipeline.vae, latents)
    assert decoded.shape == video.shape
    torch.testing.assert_close(decoded, pipeline.vae.decode(raw).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_generate_against_a_run_of_the_pipeline(family, pipeline, scale):
    conditioning = conditioning_of()
    noise = torch.randn(3, *SHAPE)
    given = {"num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH, "num_inference_steps": 4}
    expected = pipeline(
        **padded(conditioning) | given, latents=noise, guidance_scale=scale, output_type="latent"
    ).frames

    def model(*inputs):
        return family.velocity(pipeline.transformer, *inputs)

    made = generate(model, family.load_scheduler(4, 18), noise, guided(conditioning, scale))
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_those_of_the_pipeline(family, pipeline):
    encode = family.load_prompt_encoder("cpu")
    captions = [*CAPTIONS, "a " * 400]  # the last is cut
    pipeline.tokenizer, pipeline.tokenizer_2 = encode.tokenizer, encode.tokenizer_2
    embeds, pooled, mask = pipeline.encode_prompt(captions, device="cpu")
    made = encode(captions)
    lengths = [len(each["prompt_embeds"]) for each in made]
    assert lengths == mask.sum(1).tolist()
    assert lengths[-1] == 256
    assert lengths[0] < lengths[1] < 256
    for row, each in enumerate(made):
        torch.testing.assert_close(each["prompt_embeds"], embeds[row][mask[row].bool()], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(each["pooled_projections"], pooled[row], atol=1e-5, rtol=1e-4)
    alone = encode(captions[:1])[0]
    for name, value in made[0].items():
        torch.testing.assert_close(value, alone[name], atol=1e-5, rtol=1e-4)


def test_noise_is_shifted_as_sampling_is(family):
    """Shift 7 takes the median of sigma from 1/2 to 7/8."""
    assert family.noising().quantile(torch.tensor([0.5])).item() == pytest.approx(7 / 8)


def test_image_to_video_bases_are_refused(base, tmp_path):
    other = shutil.copytree(base, tmp_path / "base")
    path = other / "transformer/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_condition_type": "token_replace"}))
    with pytest.raises(UserError, match="image-to-video"):
        open_family(other)
