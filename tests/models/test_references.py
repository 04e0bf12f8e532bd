"""Reference videos against diffusers' in-context pipeline, and a run from clips with references to a sampled video."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import bases
from tests.models.test_ltx2 import (
    CAPTIONS,
    FPS,
    GUIDED,
    HEIGHT,
    NUM_FRAMES,
    SHAPE,
    WIDTH,
    calls_of,
    deaf_transformer,
    pipeline_of,
)
from tests.models.test_ltx_video import SCHEDULES
from tests.tiny_runs import tiny_words
from vidlit.__main__ import main
from vidlit.diffusion.batch import Conditioning, LatentSample, collate
from vidlit.diffusion.conditions import REFERENCE, Condition
from vidlit.diffusion.generate import generate
from vidlit.errors import UserError
from vidlit.latents.store import LatentStore
from vidlit.models.families.log_mel import SAMPLE_RATE
from vidlit.models.families.ltx2_sound import AUDIO
from vidlit.models.family import open_family
from vidlit.training.flops import flops_of_a_sample
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.objective import check_losses, training_loss
from vidlit.video.frames import ClipRequest, probe, read_clip
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound

ONE_PASS = {"guidance_scale": 1.0, "audio_guidance_scale": 1.0, "num_inference_steps": 2}
GIVEN = [{"frames": "reference"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a scaling factor of 1, as published: the pipeline leaves it out where it normalises references."""
    base = bases.ltx2(tmp_path_factory.mktemp("ltx2") / "base", **SCHEDULES["shifted"])
    config = base / "vae" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"scaling_factor": 1.0}))
    return base


def frames_of(number):
    """A video as the pipeline takes it, and in [-1, 1] as (1, 3, F, H, W)."""
    pixels = np.random.default_rng(number).integers(0, 256, (number, HEIGHT, WIDTH, 3), np.uint8)
    return [Image.fromarray(each) for each in pixels], torch.from_numpy(pixels).permute(3, 0, 1, 2)[None] / 127.5 - 1


def in_context(frames):
    from diffusers.pipelines.ltx2.pipeline_ltx2_ic_lora import LTX2ReferenceCondition

    return {"reference_conditions": LTX2ReferenceCondition(frames), "prompt": CAPTIONS[0]}


@torch.no_grad()
@pytest.mark.parametrize("num_frames", [NUM_FRAMES, 1], ids=["video", "image"])
@pytest.mark.parametrize("audio", ["off", "on"])
def test_velocity_is_the_in_context_pipelines(folder, audio, num_frames):
    family = open_family(folder, FPS, audio)
    assert family.reference_pipeline == "LTX2InContextPipeline"
    pipeline = pipeline_of(folder, family.reference_pipeline)
    frames, video = frames_of(num_frames)
    calls = calls_of(pipeline, **in_context(frames), **ONE_PASS, modality_scale=3.0)
    calls = [call for call in calls if call[0]["isolate_modalities"] == (audio == "off")]
    assert len(calls) == 2
    prompt = Conditioning.of(family.load_prompt_encoder("cpu")(CAPTIONS[:1]))
    reference = family.encode_video(family.load_vae("cpu"), video)
    assert prompt.with_extras({REFERENCE: reference}).num_given == ((num_frames - 1) // 8 + 1) * 2 * 3
    length = SHAPE[1] * SHAPE[2] * SHAPE[3]
    for given, expected in calls:
        tokens = given["hidden_states"]
        torch.testing.assert_close(tokens[:, length:], reference.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
        noisy, expected = (pipeline._unpack_latents(each[:, :length], *SHAPE[1:]) for each in (tokens, expected))
        sigmas = given["sigma"] / 1000
        heard = {AUDIO: given["audio_hidden_states"].transpose(1, 2)} if audio == "on" else {}
        without = prompt.with_streams(heard, dict.fromkeys(heard, sigmas))
        made, alone = (
            family.velocity(pipeline.transformer, noisy, sigmas, each)
            for each in (without.with_extras({REFERENCE: reference}), without)
        )
        if audio == "on":
            made, alone = made["latents"], alone["latents"]
        torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-4)
        assert (made - alone).abs().mean() > 1e-3


@torch.no_grad()
def test_a_guided_run_is_the_in_context_pipelines(folder):
    """Its noise for the reference's tokens is never seen, and the schedule counts them."""
    family = open_family(folder, FPS)
    transformer = deaf_transformer(family)
    pipeline = pipeline_of(folder, family.reference_pipeline)
    pipeline.transformer = transformer
    frames, video = frames_of(NUM_FRAMES)
    starts = []
    pipeline.transformer.register_forward_hook(
        lambda module, args, given, made: starts.append(given["hidden_states"].chunk(2)[0]), with_kwargs=True
    )
    expected = pipeline(**in_context(frames), **GUIDED).frames
    encode, vae = family.load_prompt_encoder("cpu"), family.load_vae("cpu")
    prompt, null = (Conditioning.of(encode([text])) for text in (CAPTIONS[0], ""))
    conditioning = prompt.with_extras({REFERENCE: family.encode_video(vae, video)})
    noise = pipeline._unpack_latents(starts[0][:, : SHAPE[1] * SHAPE[2] * SHAPE[3]], *SHAPE[1:])
    made = generate(
        lambda *inputs: family.velocity(transformer, *inputs),
        family.load_scheduler(4, noise[0, 0].numel() + conditioning.num_given),
        noise,
        conditioning,
        null,
        3.0,
    )
    assert (made - noise).abs().mean() > 0.1
    torch.testing.assert_close(family.denormalise(vae, made), expected, atol=1e-4, rtol=1e-4)


def batch_of(family, *, with_reference):
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number, caption in enumerate(CAPTIONS):
        (prompt,) = family.load_prompt_encoder("cpu")([caption])
        latents, reference = (torch.randn(SHAPE, generator=generator) for _ in range(2))
        extras = {REFERENCE: reference} if with_reference else {}
        samples.append(LatentSample(latents, prompt["prompt_embeds"], number, number, extras))
    return collate(samples)


@torch.no_grad()
def test_training_and_checks_read_the_reference_beside_other_conditions(folder):
    """It has no loss of its own; noise and levels are those of a run without."""
    losses = {}
    for name, conditions in {"alone": [], "first": [Condition("first", 0.5)]}.items():
        module = VideoDiffusionModule(str(folder), fps=FPS, conditions=[Condition("reference"), *conditions])
        module.configure_model()
        assert module.reads_references
        assert module.conditions == tuple(conditions)
        for with_reference in (True, False):
            batch = batch_of(module.family, with_reference=with_reference)
            step, checked = training_loss(module, batch, 0, 0)[0], check_losses(module, batch)["all"]
            assert checked.shape == (2, 2)
            losses[name, with_reference] = torch.stack([step, *checked.flatten()])
    for name in ("alone", "first"):
        assert (losses[name, True] - losses[name, False]).abs().min() > 1e-6
        torch.testing.assert_close(losses[name, True], losses[name, False], atol=0, rtol=0.2)


def test_operations_on_the_reference_are_counted(folder):
    module = VideoDiffusionModule(str(folder), fps=FPS)
    counts = [
        flops_of_a_sample(module.family, module.structure(), batch_of(module.family, with_reference=each))
        for each in (False, True)
    ]
    assert 1.3 < counts[1] / counts[0] < 2


def test_families_that_take_no_reference_say_which_do(tmp_path):
    with pytest.raises(UserError, match=r"gives every sample a reference, but .* takes none: .* LTX-2 does"):
        VideoDiffusionModule(str(bases.ltx_video(tmp_path / "base")), conditions=[Condition("reference")])


@pytest.fixture
def clips(demo, tmp_path):
    """The demo's with a tone, each with itself in negative, and silent, for a reference."""
    folder = tmp_path / "clips"
    folder.mkdir()
    with (demo.dir / "clips" / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        path = demo.dir / "clips" / row["file_name"]
        info = probe(path)
        frames = read_clip(ClipRequest(path, 0.0, info.num_frames, info.fps, info.height, info.width))
        row["reference"] = f"negatives/{row['file_name']}"
        time = np.arange(round(info.duration * SAMPLE_RATE)) / SAMPLE_RATE
        tone = np.repeat(0.3 * np.sin(1200 * time)[None], 2, axis=0).astype(np.float32)
        (folder / row["reference"]).parent.mkdir(exist_ok=True, parents=True)
        write_mp4(folder / row["file_name"], frames, info.fps, Sound(tone, SAMPLE_RATE))
        write_mp4(folder / row["reference"], 255 - frames, info.fps)
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.mark.slow
def test_from_clips_with_references_to_a_video_made_from_one(folder, clips, tmp_path, capsys):
    words = tiny_words("ltx2_lora", folder, clips, "9x32x64", tmp_path)
    words += [f"--model.conditions={json.dumps(GIVEN)}", "--model.audio=on"]
    assert main(["plan", *words]) == 0
    planned = capsys.readouterr().out
    assert main(["fit", *words]) == 0
    (run,) = (tmp_path / "runs" / "ltx2_lora").iterdir()
    assert "LTX2InContextPipeline" in (run / "weights" / "README.md").read_text()
    assert list(run.glob("samples/*/*.mp4"))
    stored = LatentStore(tmp_path / "latents")
    num_clips = len((run / "clips.csv").read_text().splitlines()) - 1
    assert f"{2 * num_clips} clips" in planned
    assert len(stored.keys("latent")) == 2 * num_clips
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert main(["test", *words, checkpoint]) == 0
    prompts = tmp_path / "prompts.csv"
    some = sorted((clips / "negatives").glob("*.mp4"))[:2]
    prompts.write_text("prompt,reference\n" + "".join(f"A red disc.,{path.relative_to(tmp_path)}\n" for path in some))
    assert main(["predict", *words, f"--prompts={prompts}", f"--output={tmp_path / 'out'}", checkpoint]) == 0
    first, second = (
        read_clip(ClipRequest(path, 0.0, 9, 16.0, 32, 64)) for path in sorted((tmp_path / "out").glob("*.mp4"))
    )
    assert (first != second).any()
    capsys.readouterr()
    assert main(["predict", *words, "--prompts=A red disc", f"--output={tmp_path / 'none'}", checkpoint]) == 2
    assert "this model makes videos from references" in capsys.readouterr().err
    other = [word for word in words if "conditions" not in word]
    assert main(["fit", *other, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=3"]) == 2
    assert "model.conditions" in capsys.readouterr().err
