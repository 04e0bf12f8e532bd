"""LTX-2 against diffusers' own pipelines, which denoise sound beside the video: what is compared is the video."""

import json

import diffusers
import pytest
import torch
from PIL import Image

from tests.models import bases
from tests.models.test_export import adapted_layers
from tests.models.test_ltx_video import SCHEDULES
from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.conditions import Condition, GivenFrames, without_noise
from vidlit.diffusion.generate import generate
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, choose_trained, export_weights
from vidlit.models.families.ltx2 import LTX2
from vidlit.models.family import open_family

FPS = 16.0  # not the family's own
NUM_FRAMES, HEIGHT, WIDTH = 9, 64, 96
SHAPE = (16, 2, 2, 3)
CAPTIONS = ["A red disc.", "  Two striped rings before a grey wall. "]
PLAIN = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "guidance_rescale": 0.0}
"""The pipeline without what it adds to guidance by default, for video; sound has scales of its own."""

KEYFRAMES = "keyframes_abs_pos_embedding"


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Bases by version, each written once, with the published scheduler."""
    made = {}

    def folder(version):
        if version not in made:
            base = tmp_path_factory.mktemp("ltx2") / version
            made[version] = bases.ltx2(base, version, **SCHEDULES["shifted"])
        return made[version]

    return folder


@pytest.fixture(scope="module")
def family(folder_of):
    return open_family(folder_of("2.3"), FPS)


GUIDED = {
    "num_frames": NUM_FRAMES,
    "height": HEIGHT,
    "width": WIDTH,
    "frame_rate": FPS,
    "num_inference_steps": 4,
    "guidance_scale": 3.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "output_type": "latent",
    **PLAIN,
}


def deaf_transformer(family):
    """One whose video does not listen, as the pipelines have no run in isolation."""
    transformer = family.load_transformer().eval()
    for block in transformer.transformer_blocks:
        for parameter in block.audio_to_video_attn.to_out.parameters():
            parameter.data.zero_()
    return transformer


def pipeline_of(base, name="LTX2Pipeline"):
    pipeline = getattr(diffusers, name).from_pretrained(base)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def calls_of(pipeline, **given):
    """Inputs and video outputs of the transformer in a run of the pipeline."""
    calls = []

    def keep(module, args, kwargs, made):
        calls.append((kwargs, made[0]))

    handle = pipeline.transformer.register_forward_hook(keep, with_kwargs=True)
    size = {"num_frames": NUM_FRAMES, "height": HEIGHT, "width": WIDTH}
    pipeline(**(size | given), frame_rate=FPS, output_type="latent", **PLAIN)
    handle.remove()
    return calls


@torch.no_grad()
@pytest.mark.parametrize("from_image", [False, True], ids=["noise", "image"])
@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_velocity_is_the_pipelines_isolated_prediction(folder_of, version, from_image):
    """From the caption on: it has a whole stream of sound beside the video, which isolation keeps out."""
    family = open_family(folder_of(version), FPS)
    pipeline = pipeline_of(family.base, "LTX2ImageToVideoPipeline" if from_image else "LTX2Pipeline")
    image = {"image": torch.rand(1, 3, HEIGHT, WIDTH), "image_crf": 0} if from_image else {}
    calls = calls_of(
        pipeline,
        prompt=CAPTIONS[0],
        guidance_scale=1.0,
        audio_guidance_scale=1.0,
        modality_scale=3.0,
        num_inference_steps=2,
        **image,
    )
    joint, isolated = ([call for call in calls if call[0]["isolate_modalities"] == each] for each in (False, True))
    assert len(joint) == len(isolated) == 2
    conditioning = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS[:1]))
    transformer = family.load_transformer().eval()
    for (given, expected), (_, with_sound) in zip(isolated, joint, strict=True):
        noisy = pipeline._unpack_latents(given["hidden_states"], *SHAPE[1:])
        sigmas = given["sigma"] / 1000
        if from_image:
            sigmas = without_noise(sigmas, torch.arange(SHAPE[1])[None] == 0)
        made = family.velocity(transformer, noisy, sigmas, conditioning)
        torch.testing.assert_close(made, pipeline._unpack_latents(expected, *SHAPE[1:]), atol=1e-5, rtol=1e-4)
        assert (expected - with_sound).abs().mean() > 1e-2


@torch.no_grad()
def test_leading_frames_are_given_as_the_condition_pipeline_gives_a_video(folder_of):
    from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition

    family = open_family(folder_of("2.3"), FPS)
    pipeline = pipeline_of(family.base, "LTX2ConditionPipeline")
    frames = [Image.new("RGB", (WIDTH, HEIGHT), (200, 30, 30))] * (1 + family.compression[0])
    calls = calls_of(
        pipeline,
        conditions=LTX2VideoCondition(frames, index=0),
        num_frames=1 + 2 * family.compression[0],
        prompt=CAPTIONS[0],
        guidance_scale=1.0,
        audio_guidance_scale=1.0,
        modality_scale=3.0,
        num_inference_steps=2,
    )
    isolated = [call for call in calls if call[0]["isolate_modalities"]]
    assert len(isolated) == 2
    conditioning = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS[:1]))
    for given, expected in isolated:
        sigmas = without_noise(given["sigma"] / 1000, Condition(2).given(3, None))
        noisy, expected = (pipeline._unpack_latents(each, 3, *SHAPE[2:]) for each in (given["hidden_states"], expected))
        made = family.velocity(pipeline.transformer, noisy, sigmas, conditioning)
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
        assert (made - family.velocity(pipeline.transformer, noisy, sigmas[:, 2], conditioning)).abs().mean() > 1e-3


@pytest.mark.parametrize(("schedule", "from_image"), [("shifted", False), ("shifted", True), ("plain", False)])
def test_guided_generate_against_a_run_of_the_pipeline(tmp_path, schedule, from_image):
    family = open_family(bases.ltx2(tmp_path / "base", **SCHEDULES[schedule]), FPS)
    transformer = deaf_transformer(family)
    pipeline = pipeline_of(family.base, "LTX2ImageToVideoPipeline" if from_image else "LTX2Pipeline")
    pipeline.transformer = transformer
    encode, vae = family.load_prompt_encoder("cpu"), family.load_vae("cpu")
    prompt, null = (Conditioning.of(encode([text])) for text in (CAPTIONS[0], ""))
    generator = torch.Generator().manual_seed(0)
    noise, video = torch.randn(1, *SHAPE, generator=generator), torch.rand(1, 3, NUM_FRAMES, HEIGHT, WIDTH)
    given = None
    if from_image:
        given = GivenFrames(family.encode_video(vae, 2 * video - 1), torch.arange(SHAPE[1])[None] == 0)
    start = given.put_into(noise) if given else noise
    expected = pipeline(
        prompt=CAPTIONS[0],
        latents=family.denormalise(vae, start),  # it normalises what it is given
        audio_latents=torch.randn(1, 4, 14, 4, generator=generator),
        **GUIDED,
        **({"image": video[:, :, 0], "image_crf": 0} if from_image else {}),
    ).frames
    made = generate(
        lambda *inputs: family.velocity(transformer, *inputs),
        family.load_scheduler(4, noise[0, 0].numel()),
        noise,
        prompt,
        null,
        3.0,
        given,
    )
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(family.denormalise(vae, made), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_latents_are_normalised_and_decoded_as_in_the_pipeline(family):
    vae, pipeline = family.load_vae("cpu"), diffusers.LTX2Pipeline
    video = torch.rand(2, 3, NUM_FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) * 2 - 1
    statistics = vae.latents_mean, vae.latents_std, vae.config.scaling_factor
    latents = family.encode_video(vae, video)
    assert latents.shape[1:] == family.latent_shape(NUM_FRAMES, HEIGHT, WIDTH) == SHAPE
    raw = vae.encode(video).latent_dist.mode()
    torch.testing.assert_close(latents, pipeline._normalize_latents(raw, *statistics), atol=1e-6, rtol=1e-6)
    assert (latents - raw).abs().mean() > 1e-2
    decoded = vae.decode(pipeline._denormalize_latents(latents, *statistics), None, return_dict=False)[0]
    torch.testing.assert_close(family.decode_latents(vae, latents), decoded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_prompts_are_those_of_the_pipeline(folder_of, version, monkeypatch):
    """After the connectors, for the video and, where a family keeps it, for sound."""
    family, pipeline = open_family(folder_of(version)), pipeline_of(folder_of(version))
    states, mask, _, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False, device="cpu")
    video, audio, mask = pipeline.connectors(states, mask, padding_side="left")
    assert mask.all()  # or the transformer would need it
    alone = family.load_prompt_encoder("cpu")(CAPTIONS)
    assert [set(made) for made in alone] == [{"prompt_embeds"}] * 2
    monkeypatch.setattr(LTX2, "prompt_extras", ("audio_prompt_embeds",))
    for row, made in enumerate(open_family(family.base).load_prompt_encoder("cpu")(CAPTIONS)):
        torch.testing.assert_close(made["prompt_embeds"], video[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made["audio_prompt_embeds"], audio[row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone[row]["prompt_embeds"], made["prompt_embeds"])


def test_a_text_encoder_of_another_kind_is_named(tmp_path):
    base = bases.ltx2(tmp_path / "base")
    path = base / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "gemma2"}))
    with pytest.raises(UserError, match=r"text_encoder/config\.json names .*'gemma2'.* gemma3, gemma4_unified"):
        open_family(base).load_prompt_encoder("cpu")


def test_the_connectors_belong_to_the_identity_of_prompts(tmp_path):
    base = bases.ltx2(tmp_path / "base")
    before = open_family(base).identity
    with (base / "connectors" / "config.json").open("a") as file:
        file.write(" ")
    after = open_family(base).identity
    assert after["vae"] == before["vae"]
    assert after["text"] != before["text"]


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (1024, [0.04, 0.17, 0.47, 0.67, 0.82, 0.94, 0.98]),
        (4096, [0.06, 0.26, 0.64, 0.81, 0.91, 0.97, 0.99]),
        (6144, [0.07, 0.30, 0.72, 0.86, 0.93, 0.98, 0.99]),
        (12240, [0.08, 0.35, 0.80, 0.91, 0.96, 0.99, 1.0]),
    ],
)
def test_sigmas_are_drawn_as_the_official_trainer_draws_them(family, num_tokens, expected):
    """Quantiles of 400 000 draws of its own sampler."""
    probabilities = torch.tensor([0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99])
    made = family.noising().at(num_tokens).quantile(probabilities)
    torch.testing.assert_close(made, torch.tensor(expected), atol=0.01, rtol=0)


@pytest.mark.parametrize("version", ["2.0", "2.5"])  # 2.3 is among the bases of every family
def test_full_fine_tuning_leaves_out_what_no_gradient_reaches(folder_of, version):
    family = open_family(folder_of(version))
    transformer = family.load_transformer()
    choose_trained(transformer, family, None, None, 0)
    conditioning = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS))
    family.velocity(transformer, torch.randn(2, *SHAPE), torch.tensor([0.3, 0.8]), conditioning).mean().backward()
    trained, reached = (
        {name for name, parameter in transformer.named_parameters() if holds(parameter)}
        for holds in (lambda parameter: parameter.requires_grad, lambda parameter: parameter.grad is not None)
    )
    assert trained == reached
    with_sound = {name for name, _ in transformer.named_parameters()} - trained
    assert all("audio" in name or "av_" in name or "a2v" in name for name in with_sound - {KEYFRAMES})
    assert (KEYFRAMES in with_sound) == (version == "2.5")


def test_chosen_layers_are_trained_but_for_what_is_idle(family):
    transformer = family.load_transformer()
    choose_trained(transformer, family, None, r"transformer_blocks\.1", 0)
    trained = {name.split(".")[2] for name, p in transformer.named_parameters() if p.requires_grad}
    assert trained == {"attn1", "attn2", "ff", "scale_shift_table", "prompt_scale_shift_table"}


@torch.no_grad()
def test_the_official_short_names_adapt_the_layers_of_the_video_alone(family, tmp_path):
    """And the file says so to the pipeline, which has all 24 kinds of layers of these names."""
    transformer = family.load_transformer()
    LoRA(rank=2, targets=r".*\.(to_k|to_q|to_v|to_out\.0)").apply(transformer, family)
    layers = set(adapted_layers(transformer))
    assert {layer.split(".")[2] for layer in layers} == {"attn1", "attn2"}
    assert len(layers) == 2 * 2 * 4
    export_weights(family, transformer, tmp_path)
    pipeline = diffusers.LTX2Pipeline(
        **dict.fromkeys(pipeline_of(family.base).components) | {"transformer": family.load_transformer()}
    )
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert set(adapted_layers(pipeline.transformer)) == layers
