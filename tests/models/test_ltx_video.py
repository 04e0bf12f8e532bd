"""LTX-Video against diffusers' own pipeline: the reference for every convention."""

import json
import math
import shutil

import diffusers
import pytest
import torch

from tests.models.batches import whole_mask
from vidlit.diffusion.batch import Conditioning, LatentSample, collate
from vidlit.diffusion.conditions import GivenFrames, without_noise
from vidlit.diffusion.generate import generate
from vidlit.diffusion.noising import RectifiedFlow
from vidlit.models.family import open_family

FPS = 16.0
NUM_FRAMES, HEIGHT, WIDTH = 9, 64, 96  # the pipeline wants multiples of 32
SHAPE = (64, 3, 4, 6)

SCHEDULES = {
    "plain": {},
    # what the published LTX-Video 0.9 bases state
    "shifted": {
        "use_dynamic_shifting": True,
        "base_shift": 0.95,
        "max_shift": 2.05,
        "base_image_seq_len": 1024,
        "max_image_seq_len": 4096,
        "shift_terminal": 0.1,
    },
}


@pytest.fixture(scope="module")
def family(demo):
    return open_family(demo.dir / "base", FPS)


@pytest.fixture(scope="module")
def transformer(family):
    return family.load_transformer().eval()


@pytest.fixture(scope="module")
def tiny_vae():
    """A real LTX-Video VAE, small, with statistics that are not the identity."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=64,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=4,
        scaling_factor=0.8,
        spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    )
    vae.latents_mean.copy_(torch.linspace(-1, 1, 64))
    vae.latents_std.copy_(torch.linspace(0.5, 2, 64))
    return vae.eval()


@pytest.fixture(scope="module")
def vae_family(demo, tiny_vae, tmp_path_factory):
    """The demo's base with that VAE in place of the codec."""
    base = tmp_path_factory.mktemp("vae_base") / "base"
    shutil.copytree(demo.dir / "base", base)
    shutil.rmtree(base / "vae")
    tiny_vae.save_pretrained(base / "vae")
    index = json.loads((base / "model_index.json").read_text())
    index["vae"] = ["diffusers", "AutoencoderKLLTXVideo"]
    (base / "model_index.json").write_text(json.dumps(index))
    return open_family(base, FPS)


def prompts():
    """Three prompts of different lengths, as batches hold them: padded, with a mask."""
    generator = torch.Generator().manual_seed(1)
    samples = [
        LatentSample(torch.randn(SHAPE, generator=generator), torch.randn(n, 64, generator=generator), n, n)
        for n in (4, 9, 6)
    ]
    return collate(samples)


def pipeline_of(family, transformer=None, vae=None, scheduler=None):
    return diffusers.LTXPipeline(
        scheduler=scheduler or diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae or family.load_vae("cpu"),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


@torch.no_grad()
def test_velocity_against_the_pipelines_own_parts(family, transformer):
    """Packing, timestep and rotary scale as LTXPipeline computes them, one sample at a time."""
    batch = prompts()
    noisy, sigmas = torch.randn(3, *SHAPE), torch.tensor([0.15, 0.5, 0.97])
    ours = family.velocity(transformer, noisy, sigmas, batch.conditioning)
    pipeline = pipeline_of(family, transformer)
    scale = (
        pipeline.vae_temporal_compression_ratio / FPS,
        pipeline.vae_spatial_compression_ratio,
        pipeline.vae_spatial_compression_ratio,
    )
    patch, patch_t = pipeline.transformer_spatial_patch_size, pipeline.transformer_temporal_patch_size
    for row in range(3):
        tokens = transformer(
            hidden_states=pipeline._pack_latents(noisy[row : row + 1], patch, patch_t),
            encoder_hidden_states=batch.conditioning.prompt_embeds[row : row + 1],
            timestep=sigmas[row : row + 1] * 1000,  # FlowMatchEulerDiscreteScheduler's num_train_timesteps
            encoder_attention_mask=whole_mask(batch.conditioning)[row : row + 1],
            num_frames=SHAPE[1],
            height=SHAPE[2],
            width=SHAPE[3],
            rope_interpolation_scale=scale,
            return_dict=False,
        )[0]
        expected = pipeline._unpack_latents(tokens, *SHAPE[1:], patch, patch_t)
        torch.testing.assert_close(ours[row : row + 1], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("what", ["sigma", "prompt", "mask", "position"])
def test_velocity_depends_on_everything_it_is_given(family, transformer, what):
    """Or the comparisons of this file would prove nothing."""
    batch = prompts()
    noisy, sigmas = torch.randn(3, *SHAPE), torch.full((3,), 0.5)
    conditioning = batch.conditioning
    before = family.velocity(transformer, noisy, sigmas, conditioning)
    if what == "position":
        shuffled = family.velocity(transformer, noisy.flip(-1), sigmas, conditioning).flip(-1)
        assert (shuffled - before).abs().mean() > 1e-3
        return
    if what == "sigma":
        sigmas = sigmas * 0.5
    elif what == "prompt":
        conditioning = conditioning._replace(prompt_embeds=conditioning.prompt_embeds.flip(0))
    else:
        everything = torch.ones_like(whole_mask(conditioning))
        conditioning = conditioning._replace(prompt_attention_mask=everything)
    after = family.velocity(transformer, noisy, sigmas, conditioning)
    assert (after - before).abs().mean() > 1e-4


@torch.no_grad()
def test_padding_of_a_prompt_changes_nothing(family, transformer):
    batch = prompts()
    noisy, sigmas = torch.randn(3, *SHAPE), torch.full((3,), 0.5)
    together = family.velocity(transformer, noisy, sigmas, batch.conditioning)
    for row, length in enumerate((4, 9, 6)):
        alone = family.velocity(
            transformer,
            noisy[row : row + 1],
            sigmas[:1],
            Conditioning.of([{"prompt_embeds": batch.conditioning.prompt_embeds[row, :length]}]),
        )
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_generate_against_a_run_of_the_pipeline(demo, transformer, tmp_path, schedule):
    base = tmp_path / "base"
    shutil.copytree(demo.dir / "base", base)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULES[schedule])
    scheduler.save_pretrained(base / "scheduler")
    family = open_family(base, FPS)
    assert family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == SHAPE
    batch = prompts()
    noise = torch.randn(3, *SHAPE)

    pipeline = pipeline_of(family, transformer, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    packed = pipeline(
        prompt_embeds=batch.conditioning.prompt_embeds,
        prompt_attention_mask=whole_mask(batch.conditioning),
        latents=pipeline._pack_latents(noise),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        frame_rate=FPS,
        num_inference_steps=6,
        guidance_scale=1.0,
        output_type="latent",
    ).frames
    expected = pipeline._unpack_latents(packed, *SHAPE[1:])

    def model(*inputs):
        return family.velocity(transformer, *inputs)

    num_tokens = SHAPE[1] * SHAPE[2] * SHAPE[3]
    made = generate(model, family.load_scheduler(6, num_tokens), noise, batch.conditioning)
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_the_default_noising_is_the_published_schedule(demo, family, tmp_path):
    """The shift by resolution of the base's own scheduler; none where its config states none."""
    base = tmp_path / "base"
    shutil.copytree(demo.dir / "base", base)
    diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULES["shifted"]).save_pretrained(base / "scheduler")
    shifted = open_family(base).noising().at(2048)
    assert float(shifted.quantile(torch.tensor(0.5))) == pytest.approx(1 / (1 + math.exp(-(0.95 + 1.1 / 3))))
    assert family.noising() == RectifiedFlow()


def test_guided_generate_against_a_run_of_the_pipeline(family, transformer):
    batch = prompts()
    noise = torch.randn(3, *SHAPE)
    null = Conditioning(torch.randn(1, 9, 64), torch.arange(9)[None] < 5, {})
    pipeline = pipeline_of(family, transformer)
    pipeline.set_progress_bar_config(disable=True)
    packed = pipeline(
        prompt_embeds=batch.conditioning.prompt_embeds,
        prompt_attention_mask=whole_mask(batch.conditioning),
        negative_prompt_embeds=null.prompt_embeds.expand(3, -1, -1),
        negative_prompt_attention_mask=whole_mask(null).expand(3, -1),
        latents=pipeline._pack_latents(noise),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        frame_rate=FPS,
        num_inference_steps=4,
        guidance_scale=3.0,
        output_type="latent",
    ).frames
    made = generate(
        lambda *inputs: family.velocity(transformer, *inputs),
        family.load_scheduler(4, 72),
        noise,
        batch.conditioning,
        null,
        3.0,
    )
    torch.testing.assert_close(made, pipeline._unpack_latents(packed, *SHAPE[1:]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_the_first_frame_has_timestep_zero_on_its_tokens(family, transformer):
    """As LTXImageToVideoPipeline masks timesteps; the other frames keep the sample's."""
    batch = prompts()
    noisy, sigmas = torch.randn(3, *SHAPE), torch.tensor([0.15, 0.5, 0.97])
    by_frame = without_noise(sigmas, torch.arange(SHAPE[1])[None] == 0)
    ours = family.velocity(transformer, noisy, by_frame, batch.conditioning)
    pipeline = pipeline_of(family, transformer)
    mask = torch.zeros(3, 1, *SHAPE[1:])
    mask[:, :, 0] = 1
    tokens = transformer(
        hidden_states=pipeline._pack_latents(noisy),
        encoder_hidden_states=batch.conditioning.prompt_embeds,
        timestep=1000 * sigmas[:, None] * (1 - pipeline._pack_latents(mask).squeeze(-1)),
        encoder_attention_mask=whole_mask(batch.conditioning),
        num_frames=SHAPE[1],
        height=SHAPE[2],
        width=SHAPE[3],
        rope_interpolation_scale=(4 / FPS, 16, 16),
        return_dict=False,
    )[0]
    torch.testing.assert_close(ours, pipeline._unpack_latents(tokens, *SHAPE[1:]), atol=1e-5, rtol=1e-4)
    everywhere = family.velocity(transformer, noisy, sigmas, batch.conditioning)
    assert (ours - everywhere).abs().mean() > 1e-4
    same = family.velocity(transformer, noisy, sigmas[:, None].expand(-1, SHAPE[1]), batch.conditioning)
    torch.testing.assert_close(same, everywhere, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_generate_from_a_frame_against_a_run_of_the_pipeline(vae_family, transformer, guidance):
    """From pixels: the pipeline gets the picture, ours the first latent frame of the stored clip."""
    family, vae = vae_family, vae_family.load_vae("cpu")
    video = torch.rand(1, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = family.encode_video(vae, video)
    pipeline = diffusers.LTXImageToVideoPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.randn(1, *SHAPE)
    # The mode, as the store has it; and the scaling factor, which this pipeline forgets and published bases have at 1.
    encoded = pipeline._normalize_latents(
        vae.encode(video[:, :, :1]).latent_dist.mode(), vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    )
    torch.testing.assert_close(latents[:, :, :1], encoded, atol=1e-4, rtol=1e-4)
    conditioning = Conditioning.of([{"prompt_embeds": torch.randn(5, 64)}])
    null = Conditioning.of([{"prompt_embeds": torch.randn(1, 64)}], 5)
    packed = pipeline(
        image=torch.zeros(1, 3, HEIGHT, WIDTH),  # encoded above
        prompt_embeds=conditioning.prompt_embeds,
        prompt_attention_mask=whole_mask(conditioning),
        negative_prompt_embeds=null.prompt_embeds,
        negative_prompt_attention_mask=whole_mask(null),
        latents=pipeline._pack_latents(torch.cat([encoded, noise[:, :, 1:]], dim=2)),
        num_frames=NUM_FRAMES,
        height=HEIGHT,
        width=WIDTH,
        frame_rate=FPS,
        num_inference_steps=4,
        guidance_scale=guidance,
        output_type="latent",
    ).frames
    made = generate(
        lambda *inputs: family.velocity(transformer, *inputs),
        family.load_scheduler(4, 72),
        noise,
        conditioning,
        null,
        guidance,
        GivenFrames(latents, torch.arange(SHAPE[1])[None] == 0),
    )
    assert torch.equal(made[:, :, :1], latents[:, :, :1])
    torch.testing.assert_close(made, pipeline._unpack_latents(packed, *SHAPE[1:]), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["codec", "vae"])
def test_normalisation_is_the_pipelines(family, vae_family, kind):
    family = {"codec": family, "vae": vae_family}[kind]
    vae = family.load_vae("cpu")
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH) * 2 - 1
    raw = vae.encode(video).latent_dist.mode()
    statistics = (vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
    latents = family.encode_video(vae, video)
    assert latents.shape[1:] == family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH)
    torch.testing.assert_close(
        latents, diffusers.LTXPipeline._normalize_latents(raw, *statistics), atol=1e-6, rtol=1e-6
    )
    assert (latents - raw).abs().mean() > 1e-2  # the statistics are not the identity
    decoded = vae.decode(diffusers.LTXPipeline._denormalize_latents(latents, *statistics), return_dict=False)[0]
    torch.testing.assert_close(family.decode_latents(vae, latents), decoded, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoded, vae.decode(raw, return_dict=False)[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_vae_with_a_timestep_decodes_as_the_pipeline_does(demo, transformer, tmp_path):
    torch.manual_seed(0)
    base = tmp_path / "base"
    shutil.copytree(demo.dir / "base", base)
    shutil.rmtree(base / "vae")
    diffusers.AutoencoderKLLTXVideo(
        latent_channels=64,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=4,
        timestep_conditioning=True,
        spatial_compression_ratio=16,
        temporal_compression_ratio=4,
    ).save_pretrained(base / "vae")
    family = open_family(base, FPS)
    vae = family.load_vae("cpu")
    batch = prompts()
    noise = torch.randn(3, *SHAPE)
    pipeline = pipeline_of(family, transformer, vae=vae)
    pipeline.set_progress_bar_config(disable=True)
    given = {
        "prompt_embeds": batch.conditioning.prompt_embeds,
        "prompt_attention_mask": whole_mask(batch.conditioning),
        "latents": pipeline._pack_latents(noise),
        "num_frames": NUM_FRAMES,
        "height": HEIGHT,
        "width": WIDTH,
        "frame_rate": FPS,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
    }
    latents = pipeline._unpack_latents(pipeline(**given, output_type="latent").frames, *SHAPE[1:])
    expected = pipeline(**given, output_type="pt").frames  # (B, F, 3, H, W) in [0, 1]
    made = family.decode_latents(vae, latents)
    torch.testing.assert_close(((made + 1) / 2).clamp(0, 1).transpose(1, 2), expected, atol=1e-4, rtol=1e-4)


def test_compression_is_asked_of_the_vae(vae_family, tiny_vae):
    assert vae_family.compression == (tiny_vae.temporal_compression_ratio, tiny_vae.spatial_compression_ratio)
    assert vae_family.pixel_multiple == 16
    latents = tiny_vae.encode(torch.zeros(1, 3, 5, 32, 64)).latent_dist.mode()
    assert tuple(latents.shape[1:]) == vae_family.latent_shape(5, 32, 64)


CAPTIONS = ["A red disc.", "A medium striped grey and black ring moves in a circle before a blue background.", "x"]


def test_prompts_are_the_same_alone_and_in_a_batch(family):
    encode = family.load_prompt_encoder("cpu")
    together = encode(CAPTIONS)
    for caption, made in zip(CAPTIONS, together, strict=True):
        assert made["prompt_embeds"].shape == (len(caption.encode()) + 1, 64)  # a byte a token, and the end
        assert made["prompt_embeds"].dtype == torch.float32
        torch.testing.assert_close(made["prompt_embeds"], encode([caption])[0]["prompt_embeds"], atol=1e-5, rtol=1e-4)


def test_long_captions_are_cut_at_128_tokens(family):
    encode = family.load_prompt_encoder("cpu")
    assert encode(["a" * 500])[0]["prompt_embeds"].shape == (128, 64)


def test_prompts_are_those_of_the_pipeline(family):
    """The exported weights are run with the pipeline's embeddings, so training must see the same."""
    encode = family.load_prompt_encoder("cpu")
    pipeline = diffusers.LTXPipeline(
        scheduler=None, vae=None, text_encoder=encode.encoder, tokenizer=encode.tokenizer, transformer=None
    )
    embeds, mask, _, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, device="cpu")
    for row, made in enumerate(encode(CAPTIONS)):
        torch.testing.assert_close(made["prompt_embeds"], embeds[row][mask[row]], atol=1e-5, rtol=1e-4)
