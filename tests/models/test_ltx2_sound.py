"""LTX-2 with sound against diffusers' own pipeline: both streams, and a run from clips to mp4 files that are heard."""

import csv
import json
import shutil
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

from tests.models import bases
from tests.models.test_export import adapted_layers
from tests.models.test_ltx2 import CAPTIONS, FPS, HEIGHT, NUM_FRAMES, PLAIN, SHAPE, WIDTH, pipeline_of
from tests.models.test_ltx_video import SCHEDULES
from tests.tiny_runs import tiny_words
from vidlit.__main__ import main
from vidlit.diffusion.batch import Conditioning, LatentSample, collate
from vidlit.diffusion.generate import generate
from vidlit.diffusion.loss import denoising_loss
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.errors import UserError
from vidlit.latents.store import LatentStore
from vidlit.models.adapters import LoRA, choose_trained, export_weights
from vidlit.models.families.log_mel import SAMPLE_RATE, log_mel
from vidlit.models.families.ltx2 import AUDIO_PROMPT_EMBEDS
from vidlit.models.families.ltx2_sound import AUDIO, HAS_SOUND
from vidlit.models.family import open_family
from vidlit.signals.sample_videos import SampleVideos
from vidlit.training.flops import flops_of_a_sample
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.objective import training_loss
from vidlit.video.frames import ClipRequest, probe, read_clip
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound, read_sound

NUM_AUDIO = 14  # round(9 / 16 * 25)
WHOLE = {
    "prompt": CAPTIONS[0],
    "num_frames": NUM_FRAMES,
    "height": HEIGHT,
    "width": WIDTH,
    "frame_rate": FPS,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    **PLAIN,
    "audio_guidance_rescale": 0.0,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Bases by version, each written once, with statistics of sound that are seen."""
    made = {}

    def folder(version):
        if version not in made:
            made[version] = bases.ltx2(tmp_path_factory.mktemp("ltx2") / version, version, **SCHEDULES["shifted"])
        return made[version]

    return folder


@pytest.fixture(scope="module")
def family(folder_of):
    return open_family(folder_of("2.3"), FPS, "on")


def as_tokens(latents):
    """(B, C, L, M) as the pipeline takes them to (B, D, L)."""
    return latents.transpose(1, 2).flatten(2).transpose(1, 2)


def as_latents(tokens):
    """And back."""
    return tokens.transpose(1, 2).unflatten(2, (4, -1)).transpose(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("version", ["2.0", "2.3", "2.5"])
def test_velocities_are_the_pipelines(folder_of, version):
    family = open_family(folder_of(version), FPS, "on")
    pipeline, calls = pipeline_of(family.base), []
    pipeline.transformer.register_forward_hook(
        lambda module, args, given, made: calls.append((given, made)), with_kwargs=True
    )
    pipeline(**WHOLE, guidance_scale=1.0, audio_guidance_scale=1.0, num_inference_steps=2, output_type="latent")
    assert len(calls) == 2
    prompt = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS[:1]))
    transformer = family.load_transformer().eval()
    for given, (video, audio) in calls:
        noisy = pipeline._unpack_latents(given["hidden_states"], *SHAPE[1:])
        sigmas = given["sigma"] / 1000
        heard = given["audio_hidden_states"].transpose(1, 2)
        assert heard.shape[1:] == family.stream_shapes(NUM_FRAMES, HEIGHT, WIDTH)[AUDIO] == (16, NUM_AUDIO)
        made = family.velocity(transformer, noisy, sigmas, prompt.with_streams({AUDIO: heard}, {AUDIO: sigmas}))
        torch.testing.assert_close(made["latents"], pipeline._unpack_latents(video, *SHAPE[1:]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made[AUDIO], audio.transpose(1, 2), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_guided_generate_and_sound_against_a_run_of_the_pipeline(family):
    pipeline = pipeline_of(family.base)
    encode, vae, decode = family.load_prompt_encoder("cpu"), family.load_vae("cpu"), family.load_sound_decoder("cpu")
    prompt, null = (Conditioning.of(encode([text])) for text in (CAPTIONS[0], ""))
    generator = torch.Generator().manual_seed(0)
    noise = {"latents": torch.randn(1, *SHAPE, generator=generator)}
    noise[AUDIO] = torch.randn(1, 16, NUM_AUDIO, generator=generator)
    audio_vae = family.load_audio_vae("cpu")
    mean, std = audio_vae.latents_mean[:, None], audio_vae.latents_std[:, None]
    options = {
        **WHOLE,
        "latents": family.denormalise(vae, noise["latents"]),  # it normalises what it is given
        "audio_latents": as_latents(noise[AUDIO] * std + mean),
        "guidance_scale": 3.0,
        "audio_guidance_scale": 3.0,
        "num_inference_steps": 4,
    }
    expected = pipeline(**options, output_type="latent")
    made = generate(
        lambda *inputs: family.velocity(pipeline.transformer, *inputs),
        family.load_scheduler(4, noise["latents"][0, 0].numel()),
        noise,
        prompt,
        null,
        3.0,
    )
    assert (made[AUDIO] - noise[AUDIO]).abs().mean() > 0.1
    torch.testing.assert_close(family.denormalise(vae, made["latents"]), expected.frames, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(as_latents(made[AUDIO] * std + mean), expected.audio, atol=1e-4, rtol=1e-4)
    heard, rate = decode(made)
    assert rate == pipeline.vocoder.config.output_sampling_rate
    torch.testing.assert_close(heard, pipeline(**options, output_type="pt").audio, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_sound_is_encoded_and_decoded_as_in_the_pipeline(family):
    encode, decode = family.load_video_encoder("cpu").encode_sound, family.load_sound_decoder("cpu")
    sound = torch.randn(2, 2, 9000, generator=torch.Generator().manual_seed(1)) * 0.1
    sound[1] *= 1e-5 / sound[1].abs().max()  # what a silent track of AC-3 is decoded to
    made = encode(sound, NUM_FRAMES)
    assert made[HAS_SOUND].tolist() == [[True], [False]]
    assert made[AUDIO].shape == (2, 16, NUM_AUDIO)
    vae = family.load_audio_vae("cpu")
    raw = vae.encode(log_mel(sound, 16)).latent_dist.mode()
    assert raw.shape[2] == NUM_AUDIO + 1
    packed = diffusers.LTX2Pipeline._pack_audio_latents(raw[:, :, :NUM_AUDIO])
    expected = diffusers.LTX2Pipeline._normalize_audio_latents(packed, vae.latents_mean, vae.latents_std)
    torch.testing.assert_close(made[AUDIO], expected.transpose(1, 2))
    assert (made[AUDIO] - packed.transpose(1, 2)).abs().mean() > 1e-2
    pipeline = pipeline_of(family.base)
    heard, _ = decode({AUDIO: made[AUDIO]})
    torch.testing.assert_close(heard, pipeline.vocoder(vae.decode(raw[:, :, :NUM_AUDIO], return_dict=False)[0]))
    assert heard.std() > 1e-4


def sample_of(family, caption, *, heard):
    """An encoded clip, with sound or without."""
    generator = torch.Generator().manual_seed(len(caption))
    shapes = family.stream_shapes(NUM_FRAMES, HEIGHT, WIDTH)
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    (prompt,) = family.load_prompt_encoder("cpu")([caption])
    extras = {
        AUDIO: made[AUDIO],
        HAS_SOUND: torch.tensor([float(heard)]),
        AUDIO_PROMPT_EMBEDS: prompt[AUDIO_PROMPT_EMBEDS],
    }
    return LatentSample(made["latents"], prompt["prompt_embeds"], 0, 0, extras)


def losses_of(family, batch, transformer=None):
    """Of each stream, by sample, at levels of their own."""
    transformer = transformer or family.load_transformer()
    generator = torch.Generator().manual_seed(5)
    noise = {name: torch.randn(batch.stream(name).shape, generator=generator) for name in ("latents", AUDIO)}
    sigmas = {"latents": torch.tensor([0.3, 0.9]), AUDIO: torch.tensor([0.8, 0.4])}
    return denoising_loss(lambda *given: family.velocity(transformer, *given), RectifiedFlow(), batch, noise, sigmas)


@torch.no_grad()
def test_each_stream_and_sample_has_a_level_of_its_own(family):
    samples = [sample_of(family, caption, heard=True) for caption in CAPTIONS]
    together = losses_of(family, collate(samples))
    first = collate(samples[:1])
    transformer = family.load_transformer()
    generator = torch.Generator().manual_seed(5)
    noise = {
        name: torch.randn(2, *first.stream(name).shape[1:], generator=generator)[:1] for name in ("latents", AUDIO)
    }
    levels = {"latents": torch.tensor([0.3]), AUDIO: torch.tensor([0.8])}

    def alone(levels):
        return denoising_loss(
            lambda *given: family.velocity(transformer, *given), RectifiedFlow(), first, noise, levels
        )

    for name, loss in alone(levels).items():
        torch.testing.assert_close(loss[0], together[name][0], atol=1e-5, rtol=1e-4)
    other = alone(levels | {AUDIO: torch.tensor([0.2])})
    assert (other["latents"] - together["latents"][0]).abs() > 1e-5, "the video listens"


@pytest.mark.parametrize("audio", ["on", "only"])
def test_what_is_trained_is_what_a_gradient_reaches(folder_of, audio):
    family = open_family(folder_of("2.5"), FPS, audio)
    transformer = family.load_transformer()
    choose_trained(transformer, family, None, None, 0)
    losses = losses_of(family, collate([sample_of(family, caption, heard=True) for caption in CAPTIONS]), transformer)
    sum(losses[part.stream].mean() for part in family.parts).backward()
    trained, reached = (
        {name for name, parameter in transformer.named_parameters() if holds(parameter)}
        for holds in (lambda parameter: parameter.requires_grad, lambda parameter: parameter.grad is not None)
    )
    assert trained == reached
    parts = {part.name: {name for name in trained if part.owns(f"transformer.{name}")} for part in family.parts}
    assert set().union(*parts.values()) == trained
    assert sum(map(len, parts.values())) == len(trained)
    assert all("audio" in name and "audio_to_video" not in name for name in parts["audio"])
    assert set(parts) == ({"audio"} if audio == "only" else {"video", "audio"})
    if audio == "on":
        assert {name for name, _ in transformer.named_parameters()} - trained == {"keyframes_abs_pos_embedding"}
        assert any("audio_to_video_attn" in name for name in parts["video"])


@pytest.mark.parametrize(("audio", "kinds"), [("on", 6), ("only", 3)])
def test_a_lora_is_loaded_by_the_pipeline(folder_of, tmp_path, audio, kinds):
    family = open_family(folder_of("2.3"), FPS, audio)
    transformer = family.load_transformer()
    LoRA(rank=2).apply(transformer, family)
    layers = set(adapted_layers(transformer))
    assert len({layer.split(".")[2] for layer in layers}) == kinds
    assert len(layers) == 2 * 4 * kinds
    for part in family.parts:
        assert any(part.owns(f"transformer.{layer}.lora_A.default.weight") for layer in layers)
    export_weights(family, transformer, tmp_path)
    pipeline = diffusers.LTX2Pipeline(
        **dict.fromkeys(pipeline_of(family.base).components) | {"transformer": family.load_transformer()}
    )
    pipeline.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    assert set(adapted_layers(pipeline.transformer)) == layers
    assert (tmp_path / "comfyui_lora.safetensors").is_file()


def test_a_silent_clip_is_no_example_of_sound(family):
    """Its sound has no loss, whatever it is; its video has the one that it would have."""
    module = VideoDiffusionModule(str(family.base), fps=FPS, audio="on")
    module.configure_model()
    module.log = lambda *_, **__: None
    heard = [sample_of(family, caption, heard=True) for caption in CAPTIONS]
    silent = heard[1]._replace(extras={**heard[1].extras, HAS_SOUND: torch.zeros(1)})

    def loss(*samples, parts=("video", "audio")):
        module.parts.done = {"video", "audio"} - set(parts)
        return training_loss(module, collate(samples), 0, 0)[0]

    video, both = loss(*heard, parts=["video"]), loss(*heard)
    audio = [loss(heard[0], sample, parts=["audio"]) for sample in (heard[1], silent)]
    torch.testing.assert_close(both, video + audio[0])
    torch.testing.assert_close(loss(heard[0], silent), video + audio[1])
    assert 0 < audio[1] < audio[0]
    assert loss(silent, silent, parts=["audio"]) == 0


def test_operations_of_both_streams_are_counted(family):
    module = VideoDiffusionModule(str(family.base), fps=FPS, audio="on")
    silent = VideoDiffusionModule(str(family.base), fps=FPS)
    batch = collate([sample_of(family, CAPTIONS[0], heard=True)])
    alone, both = (flops_of_a_sample(each.family, each.structure(), batch) for each in (silent, module))
    assert 0 < alone < both


def test_bases_without_sound_and_clips_too_short_for_it_are_refused(folder_of, tmp_path):
    with pytest.raises(UserError, match=r"makes no sound: leave model\.audio at off"):
        open_family(bases.ltx_video(tmp_path / "base"), audio="on")
    family = open_family(folder_of("2.3"), 60.0, True)
    with pytest.raises(UserError, match="a clip of 1 frames at 60 a second is too short for sound"):
        family.latent_shape(1, HEIGHT, WIDTH)
    assert open_family(folder_of("2.3"), 60.0, False).sample_rate is None


def test_nothing_is_audited_where_the_picture_is_not_trained(folder_of):
    samples = SampleVideos(num_audit=4)
    assert samples.make_audit(SimpleNamespace(family=open_family(folder_of("2.3"), FPS, "only"))) is None
    assert [signal.verdict().action for signal in samples.signals()] == ["continue", "continue"]


def test_what_is_stored_with_sound_is_not_what_is_stored_without(family):
    without = open_family(family.base, FPS).identity
    assert all(without[name] != family.identity[name] for name in ("vae", "text"))
    assert open_family(family.base, FPS, "only").identity == family.identity


@pytest.fixture
def clips(demo, tmp_path):
    """The demo's, of which every other one has a sound of its own."""
    folder = tmp_path / "clips"
    shutil.copytree(demo.dir / "clips", folder)
    for number, path in enumerate(sorted(folder.rglob("*.mp4"))[::2]):
        info = probe(path)
        frames = read_clip(ClipRequest(path, 0.0, info.num_frames, info.fps, info.height, info.width))
        time = np.arange(round(info.duration * SAMPLE_RATE)) / SAMPLE_RATE
        tone = 0.3 * np.sin(2 * np.pi * 200 * (number + 1) * time)
        write_mp4(path, frames, info.fps, Sound(np.stack([tone, tone]).astype(np.float32), SAMPLE_RATE))
    return folder


@pytest.mark.slow
def test_from_clips_to_videos_that_are_heard(folder_of, clips, tmp_path):
    base = folder_of("2.3")
    words = tiny_words("ltx2_sound_lora", base, clips, "9x32x64", tmp_path)
    assert main(["fit", *words]) == 0
    (run,) = (tmp_path / "runs" / "ltx2_sound_lora").iterdir()
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for part in ("video", "audio"):
        scored = [float(row[f"val/log_ratio/{part}"]) for row in rows if row.get(f"val/log_ratio/{part}")]
        assert len(scored) == 3, "at step 0, 1 and 2"
        assert np.isfinite(scored).all()
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["test", *words, checkpoint]) == 0
    parts = json.loads((run / "test" / "step_000002" / "results.json").read_text())["parts"]
    assert 0 < parts["audio"]["clips"] < parts["video"]["clips"]
    assert main(["predict", *words, "--prompts=A red disc", f"--output={tmp_path / 'out'}", checkpoint]) == 0
    made = [*run.glob("samples/*/*.mp4"), *(tmp_path / "out").glob("*.mp4")]
    assert len(made) == 2
    for path in made:
        assert probe(path).has_sound
        assert read_sound(ClipRequest(path, 0.0, 9, 16.0, 32, 64), SAMPLE_RATE).any()
    assert not list(LatentStore(tmp_path / "latents").verify())
