"""LTX-Video from 0.9.5 on against ``LTXConditionPipeline``, which its users run."""

import diffusers
import pytest
import torch
from PIL import Image

from tests.models.bases import ltx_video, ltx_video_095
from tests.models.batches import whole_mask
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.conditions import GivenFrames
from vidlit.diffusion.generate import generate
from vidlit.diffusion.noising import RectifiedFlow
from vidlit.models.family import open_family

NUM_FRAMES, HEIGHT, WIDTH = 9, 64, 96
CAPTIONS = ["A red disc.", "A medium striped grey and black ring moves in a circle. " * 4, "x"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return ltx_video_095(tmp_path_factory.mktemp("ltx_video_095") / "base")


@pytest.fixture(scope="module")
def family(base):
    return open_family(base)


@pytest.fixture(scope="module")
def pipeline(base):
    pipeline = diffusers.DiffusionPipeline.from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_versions_are_told_apart(tmp_path, family):
    """The folder of 0.9.5 names the pipeline of 0.9.0, and its scheduler no shift: its VAE tells."""
    old, new = open_family(ltx_video(tmp_path / "0.9.0")), open_family(ltx_video_095(tmp_path / "0.9.5", "LTXPipeline"))
    assert [each.pipeline_class for each in (old, new, family)] == ["LTXPipeline", *["LTXConditionPipeline"] * 2]
    assert new.prompt_recipe == family.prompt_recipe == "T5, padded to 256 with a mask"
    assert old.prompt_recipe == "T5, padded to 128 without a mask"  # as ever: what is stored stays valid
    assert old.noising() == RectifiedFlow()
    assert new.noising() == family.noising()


def test_sigmas_are_shifted_as_in_the_official_training(family):
    for num_tokens, logarithm in ((1024, 0.95), (4096, 2.05), (6656, 2.05 + 1.1 * 2560 / 3072)):
        median = family.noising().at(num_tokens).quantile(torch.tensor(0.5))
        torch.testing.assert_close(median, torch.sigmoid(torch.tensor(logarithm)))


@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_the_schedule_is_the_pipelines(family, pipeline, num_steps):
    given = {"prompt_embeds": torch.zeros(1, 2, 64), "prompt_attention_mask": torch.ones(1, 2)}
    size = {"num_frames": 1, "height": 32, "width": 32}
    pipeline(**given, **size, num_inference_steps=num_steps, guidance_scale=1.0, output_type="latent")
    scheduler = family.load_scheduler(num_steps, 1)
    torch.testing.assert_close(scheduler.timesteps, pipeline.scheduler.timesteps)
    torch.testing.assert_close(scheduler.sigmas, pipeline.scheduler.sigmas)


@pytest.mark.parametrize("num_given", [0, 1, 2])
def test_generate_against_a_run_of_the_pipeline(family, pipeline, num_given):
    """From text, from an image, and from the beginning of a video."""
    shape = family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    encode = family.load_prompt_encoder("cpu")
    prompt, null = (Conditioning.of(encode([text]), 40) for text in (CAPTIONS[0], ""))
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    given, frames = {}, None
    if num_given:
        video = torch.rand(1, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
        # The mode, as the store has it: the pipeline draws from the posterior.
        latents = family.encode_video(pipeline.vae, video)
        frames = GivenFrames(latents, torch.arange(shape[1])[None] < num_given)
        raw = family.denormalise(pipeline.vae, latents[:, :, :num_given])
        if num_given == 1:
            given = {"image": torch.zeros(1, 3, HEIGHT, WIDTH)}
        else:
            given = {"video": [Image.new("RGB", (WIDTH, HEIGHT))] * (1 + (num_given - 1) * family.compression[0])}
        given["image_cond_noise_scale"] = 0.0
    with pytest.MonkeyPatch.context() as patch:
        if num_given:
            patch.setattr("diffusers.pipelines.ltx.pipeline_ltx_condition.retrieve_latents", lambda *_, **__: raw)
        expected = pipeline(
            prompt_embeds=prompt.prompt_embeds,
            prompt_attention_mask=whole_mask(prompt),
            negative_prompt_embeds=null.prompt_embeds,
            negative_prompt_attention_mask=whole_mask(null),
            generator=torch.Generator().manual_seed(1),
            num_frames=NUM_FRAMES,
            height=HEIGHT,
            width=WIDTH,
            frame_rate=family.fps,
            num_inference_steps=4,
            guidance_scale=3.0,
            output_type="latent",
            **given,
        ).frames
    made = generate(
        lambda *inputs: family.velocity(pipeline.transformer, *inputs),
        family.load_scheduler(4, 72),
        noise,
        prompt,
        null,
        3.0,
        frames,
    )
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_prompts_are_those_of_the_pipeline_and_cut_at_256_tokens(family, pipeline):
    encode = family.load_prompt_encoder("cpu")
    captions = [*CAPTIONS, "a" * 300]
    embeds, mask, _, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, device="cpu")
    for row, made in enumerate(encode(captions)):
        torch.testing.assert_close(made["prompt_embeds"], embeds[row][mask[row].bool()], atol=1e-5, rtol=1e-4)
    assert [read.num_cut for read in encode.read_tokens(captions)] == [0, 0, 0, 300 + 1 - 256]
