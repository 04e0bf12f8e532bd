"""Kandinsky 5 against diffusers' own pipeline."""

import json
import shutil

import diffusers
import pytest
import torch

from tests.models import bases
from tests.models.test_export import trained, velocities
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, LoRAFile, export_weights
from vidlit.models.family import open_family
from vidlit.training.memory import Memory

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
SHAPE = (4, 3, 4, 6)
CAPTIONS = ["A red disc &amp; a ring.", "x", "", "A medium striped grey and black ring moves in a circle."]


@pytest.fixture(scope="module", params=[True, False], ids=["visual_cond", "plain"])
def base(request, tmp_path_factory):
    return bases.kandinsky5(tmp_path_factory.mktemp("kandinsky") / "base", request.param)


@pytest.fixture(scope="module")
def family(base):
    return open_family(base)


@pytest.fixture(scope="module")
def pipeline(base):
    made = diffusers.Kandinsky5T2VPipeline.from_pretrained(base)
    made.set_progress_bar_config(disable=True)
    made.transformer.eval()
    return made


@pytest.fixture(scope="module")
def prompts(family):
    return family.load_prompt_encoder("cpu")(CAPTIONS)


def test_a_base_says_what_it_is(family, pipeline):
    assert family.compression == (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial) == (4, 8)
    assert family.pixel_multiple == 16
    assert family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == SHAPE
    assert family.has_image_channels is pipeline.transformer.visual_cond
    assert family.noising().quantile(torch.tensor([0.5])).item() == pytest.approx(5 / 6)  # the scheduler's shift


@torch.no_grad()
def test_prompts_are_those_of_the_pipeline_one_by_one(family, pipeline):
    """Together they would be padded, and the transformer would read it."""
    captions = [*CAPTIONS, "a " * 800]  # the last is cut
    for caption, made in zip(captions, family.load_prompt_encoder("cpu")(captions), strict=True):
        embeds, pooled, lengths = pipeline.encode_prompt(caption)
        assert lengths.tolist() == [0, len(made["prompt_embeds"])]
        torch.testing.assert_close(made["prompt_embeds"], embeds[0])
        torch.testing.assert_close(made["pooled_projections"], pooled[0])


@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_the_pipeline_does(family, pipeline):
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = family.load_video_encoder("cpu")(video)["latents"]
    assert latents.shape[1:] == SHAPE
    raw = pipeline.vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(latents, raw * pipeline.vae.config.scaling_factor)
    decoded = family.decode_latents(pipeline.vae, latents)
    torch.testing.assert_close(decoded, pipeline.vae.decode(raw).sample, atol=1e-4, rtol=1e-4)  # scaled and back


class Told(torch.nn.Module):
    """Keeps what a transformer is called with."""

    dtype = torch.float32

    def forward(self, hidden_states, **given):
        self.given = given
        return hidden_states[..., : SHAPE[0]]


@pytest.mark.parametrize("size", [(32, 48), (480, 832), (512, 768), (480, 864), (464, 832), (720, 1280)])
def test_positions_are_scaled_by_the_size_in_pixels_as_in_the_pipeline(family, pipeline, prompts, size):
    told, (height, width) = Told(), size
    noisy = torch.zeros(1, 4, 2, height // 8, width // 8)
    assert family.velocity(told, noisy, torch.tensor([0.75]), Conditioning.of(prompts[:1])).shape == noisy.shape
    assert told.given["scale_factor"] == pipeline._get_scale_factor(height, width)
    assert [len(each) for each in told.given["visual_rope_pos"]] == [2, height // 16, width // 16]
    assert told.given["timestep"].tolist() == [750.0]


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_generate_against_a_run_of_the_pipeline(family, pipeline, prompts, scale):
    noise = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(2))
    latents = noise.movedim(1, -1).clone()  # channels last, and those of an image and a mask beside them
    if family.has_image_channels:
        latents = torch.cat([latents, torch.zeros(*latents.shape[:-1], 5)], dim=-1)
    expected = pipeline(
        prompt=CAPTIONS[0],
        negative_prompt="",
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        num_inference_steps=4,
        guidance_scale=scale,
        latents=latents,
        output_type="latent",
    ).frames.movedim(-1, 1)
    made = generate(
        lambda *inputs: family.predict({"transformer": pipeline.transformer}, *inputs),
        family.load_scheduler(4, noise[0, 0].numel()),
        noise,
        Conditioning.of(prompts[:1]),
        Conditioning.of(prompts[2:3]),
        guidance_scale=scale,
    )
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_batch_is_called_by_length_of_prompt(family, pipeline, prompts):
    """As the pipeline would call each of its samples; a batch of one length is one call."""
    noisy, sigmas = torch.randn(4, *SHAPE), torch.tensor([0.2, 0.4, 0.6, 0.8])
    transformers = {"transformer": pipeline.transformer}
    calls = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    together = family.predict(transformers, noisy, sigmas, Conditioning.of(prompts))
    assert len(calls) == len({len(prompt["prompt_embeds"]) for prompt in prompts}) > 1
    calls.clear()
    family.predict(transformers, noisy, sigmas, Conditioning.of([prompts[0]] * 4))
    hook.remove()
    assert len(calls) == 1
    for row, prompt in enumerate(prompts):
        one = slice(row, row + 1)
        alone = family.velocity(pipeline.transformer, noisy[one], sigmas[one], Conditioning.of([prompt]))
        torch.testing.assert_close(together[one], alone, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_base_in_bfloat16_keeps_in_float32_what_the_architecture_needs(family, pipeline, prompts):
    """As loaded so, and as lowered for a LoRA, under autocast as training runs it."""
    conditioning = Conditioning.of(prompts[:1] * 2)
    noisy, sigmas = torch.randn(2, *SHAPE), torch.tensor([0.3, 0.9])
    exact = family.velocity(pipeline.transformer, noisy, sigmas, conditioning)
    transformer = family.load_transformer(torch.bfloat16)
    LoRA(rank=2).apply(transformer, family)
    Memory(base_dtype="bfloat16").apply(transformer, torch.device("cpu"), trains_in_bfloat16=False)
    dtypes = {
        ("modulation" in name or "time_embeddings" in name or "lora" in name, value.dtype)
        for name, value in transformer.named_parameters()
    }
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    with torch.autocast("cpu", torch.bfloat16):
        made = family.velocity(transformer.eval(), noisy, sigmas, conditioning).float()
    assert ((made - exact).square().mean() / exact.square().mean()).sqrt() < 0.05


def test_a_lora_file_is_sampled_with(family, tmp_path):
    conditioning = bases.conditioning_of(family)
    transformer = trained(family, LoRA(rank=2, alpha=1.0))
    written = export_weights(family, transformer, tmp_path / "weights")
    again = family.load_transformer().eval()
    LoRAFile(written[0]).apply(again, family)
    expected = velocities(family, transformer, conditioning)
    torch.testing.assert_close(velocities(family, again, conditioning), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"attention_type": "nabla"}, "sparse attention"),
        ("model_index.json", {"_class_name": "Kandinsky5I2VPipeline"}, "only text-to-video"),
    ],
)
def test_what_it_cannot_train_is_refused(base, tmp_path, file, change, message):
    other = shutil.copytree(base, tmp_path / "base")
    (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_family(other)
