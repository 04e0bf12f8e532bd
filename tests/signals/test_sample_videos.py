import json

import av
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.diffusion.conditions import Condition
from vidlit.diffusion.noising import keyed_generator
from vidlit.errors import UserError
from vidlit.sampling.rendering import Sample, to_frames, write_samples
from vidlit.sampling.sampler import Sampling, sample_clips
from vidlit.training.module import VideoDiffusionModule


@pytest.fixture(scope="module")
def data(demo, latents):
    made = LatentDataModule(
        demo.dir / "clips",
        latents,
        str(demo.dir / "base"),
        ["9x64x64", "17x48x80"],
        fps=16,
        split=Splitting(val_fraction=0.5),
    )
    made.encode(accelerator="cpu", devices=1)
    return made


@pytest.fixture(scope="module")
def module(demo):
    made = VideoDiffusionModule(str(demo.dir / "base"), fps=16)
    made.configure_model()
    return made


@pytest.fixture(scope="module")
def render(data, module):
    """Frames of samples of clips, on one rank."""
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    vae = module.family.load_vae("cpu")

    def made(clips, model=module, look=None, decode_sound=None, **options):
        sampling = Sampling(**{"num_steps": 2, "seed": 0, "guidance_scale": 1.0, "negative_prompt": "", **options})
        seen = {"vae": vae, "look": look, "decode_sound": decode_sound}
        return sample_clips(trainer, model, data, clips, sampling, step=7, **seen)

    return made


def test_videos_have_their_clips_size_and_repeat(data, module, render):
    by_bucket = {clip.bucket: clip for clip in data.plan.clips}
    clips = [*by_bucket.values(), data.plan.clips[0]]
    assert len({clip.bucket for clip in clips}) == 2
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    samples = render(clips)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training  # as it was
    for clip, sample in zip(clips, samples, strict=True):
        assert sample.frames.shape == (*clip.bucket, 3)
        assert sample.frames.dtype == np.uint8
        assert sample.frames.std() > 1
        told = {"prompt": clip.source.caption, "seed": 0, "num_steps": 2, "step": 7, "size": str(clip.bucket)}
        assert told.items() <= sample.metadata.items()
    # a clip's video depends on nothing but itself and the seed
    alone = render(clips[1:2])[0].frames
    assert np.abs(alone.astype(int) - samples[1].frames).max() <= 1
    other = render(clips[1:2], seed=1)[0].frames
    assert np.abs(other.astype(int) - alone).mean() > 1


def test_samples_have_the_sound_of_their_own_streams(data, render):
    def decode(streams):
        loudness = streams["latents"].flatten(1).mean(dim=1)
        return loudness[:, None, None].expand(-1, 2, 10), 8

    chunks = []
    clips = [clip for clip in data.plan.clips if clip.bucket == data.plan.clips[0].bucket]
    samples = render(clips, look=chunks.append, decode_sound=decode)
    assert len(samples) > 1
    expected = torch.cat([chunk.latents for chunk in chunks]).flatten(1).mean(dim=1).clamp(-1, 1)
    for sample, loudness in zip(samples, expected, strict=True):
        assert sample.sound.rate == 8
        np.testing.assert_array_equal(sample.sound.samples, np.full((2, 10), loudness))
    assert render(clips[:1])[0].sound is None


def test_guidance_leads_away_from_the_negative_prompt(data, render):
    clips = data.val_clips[:1]
    with pytest.raises(UserError, match="not"):  # was not encoded
        render(clips, guidance_scale=3.0, negative_prompt="blurry")
    data.further_captions = ["blurry", clips[0].source.caption]
    data.encode(accelerator="cpu", devices=1)
    plain = render(clips)[0]
    guided = render(clips, guidance_scale=3.0, negative_prompt="blurry")[0]
    assert guided.metadata["negative_prompt"] == "blurry"
    assert "negative_prompt" not in plain.metadata
    assert np.abs(guided.frames.astype(int) - plain.frames).mean() > 0.5
    # away from itself there is no way to go
    still = render(clips, guidance_scale=3.0, negative_prompt=clips[0].source.caption)[0]
    assert np.abs(still.frames.astype(int) - plain.frames).max() <= 1


@torch.no_grad()
@pytest.mark.parametrize(("frames", "place"), [("first", 0), ("last", -1)])
def test_samples_of_a_model_that_is_always_given_a_frame_start_from_the_clips(
    data, demo, module, render, frames, place
):
    (clip,) = data.val_clips[:1]
    chunks = []
    model = VideoDiffusionModule(str(demo.dir / "base"), fps=16, conditions=[Condition(frames)])
    model.transformer = module.transformer
    for each in (model, module):
        render([clip], model=each, look=chunks.append, num_steps=3)
    made, free = (chunk.latents[0] for chunk in chunks)
    latents = data.dataset([clip])[0].latents.float()
    assert torch.equal(made[:, place], latents[:, place])
    others = torch.arange(made.shape[1]) != place % made.shape[1]
    assert (made - latents)[:, others].abs().mean() > 0.1
    assert (made - free)[:, others].abs().mean() > 1e-3  # the rest knows of it


@torch.no_grad()
def test_a_perfect_model_draws_the_very_clip(data, module, render, monkeypatch):
    """With the true velocity the sampler must end in the encoded clip: key, schedule and decoding fit together."""
    (clip,) = data.val_clips[:1]
    sample = data.dataset([clip])[0]
    latents = sample.latents.float()[None]
    noise = torch.randn(latents.shape[1:], generator=keyed_generator("sample", 0, sample.key))[None]
    monkeypatch.setattr(VideoDiffusionModule, "forward", lambda *_: noise - latents)
    (video,) = render([clip], num_steps=3)
    expected = to_frames(module.family.decode_latents(module.family.load_vae("cpu"), latents)[0])
    assert np.abs(video.frames.astype(int) - expected).max() <= 1


def test_frames_are_rounded_and_clipped():
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 5, 1, 1).expand(3, 5, 2, 4)
    frames = to_frames(video)
    assert frames.shape == (5, 2, 4, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def noise_samples(clips):
    generator = np.random.default_rng(0)
    return [
        Sample(
            generator.integers(0, 255, (*clip.bucket, 3)).astype(np.uint8), {"prompt": clip.source.caption, "seed": 3}
        )
        for clip in clips
    ]


def test_files_are_playable_and_named_by_caption(data, tmp_path):
    clips = data.val_clips[:2]
    paths = write_samples(tmp_path / "samples", noise_samples(clips), 16.0)
    sheet = tmp_path / "samples" / "contact_sheet.png"
    notes = [path.with_suffix(".json") for path in paths]
    assert sorted((tmp_path / "samples").iterdir()) == sorted([*paths, *notes, sheet])
    assert [path.name[:3] for path in paths] == ["00_", "01_"]
    words = clips[0].source.caption.lower().split()
    assert "_".join(words[:3]) in paths[0].name
    for path, note, clip in zip(paths, notes, clips, strict=True):
        assert json.loads(note.read_text()) == {"prompt": clip.source.caption, "seed": 3}
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert float(stream.average_rate) == 16
            frames = list(container.decode(stream))
        assert (len(frames), frames[0].height, frames[0].width) == tuple(clip.bucket)
    with Image.open(sheet) as picture:
        assert picture.width >= max(5 * clip.bucket.width for clip in clips)
        assert picture.height > sum(clip.bucket.height for clip in clips)
