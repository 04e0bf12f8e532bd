"""HunyuanVideo 1.5 against diffusers' own pipelines, from text and from an image."""

import json
import shutil

import diffusers
import pytest
import torch
from PIL import Image

from tests.models import bases
from tests.models.batches import batch_of, random_frames
from tests.models.test_export import trained, velocities
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.generate import generate
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, LoRAFile, choose_trained, export_weights, pipeline_loads_lora
from vidlit.models.families import hunyuan_video15
from vidlit.models.family import open_family

SIZE = NUM_FRAMES, HEIGHT, WIDTH = 5, 32, 48
SHAPE = (8, 2, 2, 3)
CAPTIONS = ["A red disc.", 'A sign that says "Open" and “shut” before a grey wall.', "", "x"]


@pytest.fixture(scope="module", params=["text", "image"])
def from_image(request):
    return request.param == "image"


@pytest.fixture(scope="module")
def base(tmp_path_factory, from_image):
    return bases.hunyuan_video15(tmp_path_factory.mktemp("hunyuan15") / "base", from_image)


@pytest.fixture(scope="module")
def family(base):
    return open_family(base)


@pytest.fixture(scope="module")
def pipeline(base, family):
    made = getattr(diffusers, family.pipeline_class).from_pretrained(base)
    made.set_progress_bar_config(disable=True)
    made.transformer.eval()
    return made


@pytest.fixture(scope="module")
def conditioning(family):
    """Of three captions and a clip each."""
    return batch_of(family, SIZE, CAPTIONS[:3]).conditioning


@torch.no_grad()
def encoded_by_the_pipeline(pipeline, captions):
    """As its call hands them to the transformer: padded, with masks."""
    names = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2", "encoder_attention_mask_2")
    return dict(zip(names, pipeline.encode_prompt(captions, batch_size=len(captions)), strict=True))


@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_mask_of_the_vae_is_the_one_of_diffusers(family, pipeline, batch_size):
    blocks = [each for each in family.load_vae("cpu").modules() if hasattr(each, "prepare_causal_attention_mask")]
    theirs = [each for each in pipeline.vae.modules() if hasattr(each, "prepare_causal_attention_mask")]
    assert len(blocks) == len(theirs) > 0
    of = (3, 4, torch.bfloat16, torch.device("cpu"), batch_size)
    expected = theirs[0].prepare_causal_attention_mask(*of)
    assert all(torch.equal(each.prepare_causal_attention_mask(*of), expected) for each in blocks)
    assert blocks[0].prepare_causal_attention_mask is hunyuan_video15.causal_mask


def test_a_base_says_what_it_is(family, pipeline, from_image):
    assert family.from_image is from_image
    assert family.compression == (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial) == (4, 16)
    assert family.pixel_multiple == 16
    assert family.latent_shape(*SIZE) == SHAPE
    assert family.noising().quantile(torch.tensor([0.5])).item() == pytest.approx(3 / 4)  # shift 3


def test_prompts_are_those_of_the_pipeline(family, pipeline):
    captions = [*CAPTIONS, "a " * 1200]  # the last is cut
    expected = encoded_by_the_pipeline(pipeline, captions)
    made = family.load_prompt_encoder("cpu")(captions)
    mask, glyph_mask = expected["encoder_attention_mask"].bool(), expected["encoder_attention_mask_2"].bool()
    assert [len(each["prompt_embeds"]) for each in made] == mask.sum(1).tolist()
    assert glyph_mask.any(1).tolist() == [False, True, False, False, False]
    for row, each in enumerate(made):
        states = expected["encoder_hidden_states"][row][mask[row]]
        torch.testing.assert_close(each["prompt_embeds"], states, atol=1e-5, rtol=1e-4)
        glyphs = expected["encoder_hidden_states_2"][row] * glyph_mask[row][:, None]
        torch.testing.assert_close(each["glyph_embeds"], glyphs, atol=1e-5, rtol=1e-4)
        assert torch.equal(each["glyph_embeds"].any(-1), glyph_mask[row])


@torch.no_grad()
def test_velocity_is_what_the_pipelines_scheduler_is_given(family, pipeline, conditioning, from_image):
    noisy = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    given = torch.zeros(3, 9, *SHAPE[1:])
    image_embeds = torch.zeros(3, 729, 24)
    if from_image:
        given[:, :8, :1], given[:, 8, 0] = conditioning.extras["image_latents"], 1
        image_embeds = conditioning.extras["image_embeds"]
    for sigma in (0.95, 0.5, 0.1):
        expected = pipeline.transformer(
            hidden_states=torch.cat([noisy, given], dim=1),
            timestep=torch.full((3,), 1000 * sigma),
            image_embeds=image_embeds,
            **encoded_by_the_pipeline(pipeline, CAPTIONS[:3]),
            return_dict=False,
        )[0]
        velocity = family.velocity(pipeline.transformer, noisy, torch.full((3,), sigma), conditioning)
        torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clips_are_encoded_and_decoded_as_the_pipeline_does(family, pipeline):
    video = torch.rand(2, 3, *SIZE) * 2 - 1
    encoded = family.load_video_encoder("cpu")(video)
    assert encoded["latents"].shape[1:] == SHAPE
    raw = torch.cat([pipeline.vae.encode(one[None]).latent_dist.mode() for one in video])  # it takes one at a time
    torch.testing.assert_close(encoded["latents"], raw * pipeline.vae.config.scaling_factor, atol=1e-5, rtol=1e-5)
    decoded = family.decode_latents(family.load_vae("cpu"), encoded["latents"])
    expected = torch.cat([pipeline.vae.decode(one[None]).sample for one in raw])
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=1e-5)


def test_the_rule_of_tiles_is_part_of_the_identity_of_latents(family, monkeypatch):
    before = family.identity
    monkeypatch.setattr(family, "vae_recipe", "in tiles from 5 latent positions on")
    assert family.identity["vae"] != before["vae"]
    assert family.identity["text"] == before["text"]


@torch.no_grad()
@pytest.mark.parametrize("tiled_from", [17, 18])
def test_large_clips_are_encoded_and_decoded_in_tiles(family, from_image, tiled_from, monkeypatch):
    if from_image:
        pytest.skip("the VAE is the same")
    monkeypatch.setattr(hunyuan_video15, "TILED_FROM", tiled_from)
    vae, tiled = family.load_vae("cpu"), family.load_vae("cpu")
    tiled.enable_tiling()  # of 256 pixels
    video = torch.rand(1, 3, 1, 16, 272, generator=torch.Generator().manual_seed(1)) * 2 - 1
    raw = tiled.encode(video).latent_dist.mode()
    assert torch.equal(family.posterior(vae, video).mode(), raw) is (tiled_from == 17)
    latents = family.normalise(vae, raw)
    decoded = tiled.decode(family.denormalise(vae, latents)).sample
    assert torch.equal(family.decode_latents(vae, latents), decoded) is (tiled_from == 17)


@torch.no_grad()
def test_the_image_is_read_as_the_pipeline_reads_it(family, pipeline, from_image):
    if not from_image:
        pytest.skip("text-to-video")
    frames = random_frames(SIZE, 1)
    encoded = family.load_video_encoder("cpu")(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1)
    image = Image.fromarray(frames[0, 0].numpy())
    embeds = pipeline.encode_image(image, batch_size=1, device="cpu", dtype=torch.float32)
    torch.testing.assert_close(encoded["image_embeds"], embeds, atol=1e-5, rtol=1e-4)
    latents, mask = pipeline.prepare_cond_latents_and_mask(
        torch.zeros(1, *SHAPE), image, 1, HEIGHT, WIDTH, torch.float32, "cpu"
    )
    torch.testing.assert_close(encoded["image_latents"], latents[:, :, :1], atol=1e-5, rtol=1e-4)
    assert mask[:, :, 0].all()
    assert not latents[:, :, 1:].any()
    assert not mask[:, :, 1:].any()


@pytest.mark.parametrize("scale", [1.0, 6.0])
def test_generate_against_a_run_of_the_pipeline(family, pipeline, from_image, scale):
    """With the guider that the base has, at its scale and without."""
    encode, caption = family.load_prompt_encoder("cpu"), CAPTIONS[1]
    prompt, null = (Conditioning.of(encode([text])) for text in (caption, ""))
    size, given, extras = SIZE, {"height": HEIGHT, "width": WIDTH}, {}
    if from_image:  # the pipeline chooses the size itself, by the image's shape
        size = (NUM_FRAMES, 64, 64)
        frames = random_frames((1, 64, 64), 1)
        given = {"image": Image.fromarray(frames[0, 0].numpy())}
        encoded = family.load_video_encoder("cpu")(frames.permute(0, 4, 1, 2, 3) / 127.5 - 1)
        extras = {name: encoded[name] for name in family.clip_extras}
    noise = torch.randn(1, *family.latent_shape(*size), generator=torch.Generator().manual_seed(2))
    pipeline.guider = pipeline.guider.new(guidance_scale=scale)
    expected = pipeline(
        prompt=caption, num_frames=NUM_FRAMES, num_inference_steps=4, latents=noise, output_type="latent", **given
    ).frames
    made = generate(
        lambda *inputs: family.velocity(pipeline.transformer, *inputs),
        family.load_scheduler(4, noise[0, 0].numel()),
        noise,
        prompt.with_extras(extras),
        null.with_extras(extras),
        guidance_scale=scale,
    )
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(made, expected, atol=1e-4, rtol=1e-4)


def test_a_lora_file_is_sampled_with(family, tmp_path, from_image):
    """Neither pipeline has a loader, nor opens without a VAE: the transformer loads it."""
    assert not pipeline_loads_lora(family)
    conditioning = bases.conditioning_of(family)
    transformer = trained(family, LoRA(rank=2, alpha=1.0))
    written = export_weights(family, transformer, tmp_path / "weights")
    again = family.load_transformer().eval()
    LoRAFile(written[0]).apply(again, family)
    expected = velocities(family, transformer, conditioning)
    torch.testing.assert_close(velocities(family, again, conditioning), expected, atol=1e-5, rtol=1e-5)
    plain = velocities(family, family.load_transformer().eval(), conditioning)
    assert (expected - plain).abs().mean() > 1e-4
    if not from_image:
        other = written[0].with_name("other.safetensors")
        other.write_bytes(b"no weights")
        with pytest.raises(UserError, match="cannot be loaded as a LoRA"):
            LoRAFile(other).apply(family.load_transformer(), family)


def test_a_lora_of_another_model_is_refused(family, tmp_path, from_image):
    diffusers.HunyuanVideoPipeline.save_lora_weights(
        tmp_path, transformer_lora_layers={"blocks.0.q.lora_A.weight": torch.ones(2, 4)}
    )
    with pytest.raises(UserError, match="LoRA"):
        LoRAFile(tmp_path / "pytorch_lora_weights.safetensors").apply(family.load_transformer(), family)


def test_all_weights_but_the_idle_are_trained(family, from_image):
    transformer = family.load_transformer()
    choose_trained(transformer, family, None, None, seed=0)
    frozen = {name for name, parameter in transformer.named_parameters() if not parameter.requires_grad}
    prefixes = ("transformer_blocks.1.",) if from_image else ("transformer_blocks.1.", "image_embedder.")
    assert all(name.startswith(prefixes) for name in frozen)
    assert ("image_embedder.linear_1.weight" in frozen) is not from_image
    assert "transformer_blocks.1.ff_context.net.2.weight" in frozen
    assert "transformer_blocks.1.attn.add_k_proj.weight" not in frozen


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("transformer/config.json", {"use_meanflow": True}, "step-distilled"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "known are HunyuanVideo15Pipeline"),
    ],
)
def test_what_it_cannot_train_is_refused(base, tmp_path, file, change, message):
    other = shutil.copytree(base, tmp_path / "base")
    (other / file).write_text(json.dumps(json.loads((other / file).read_text()) | change))
    with pytest.raises(UserError, match=message):
        open_family(other)
