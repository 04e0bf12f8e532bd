import json

import av
import numpy as np
import pytest
import torch
from PIL import Image

from vidlit.callbacks.rendering import sample_latents
from vidlit.callbacks.samples import SampleVideos, to_frames, write_samples
from vidlit.data.datamodule import LatentDataModule
from vidlit.diffusion.noising import keyed_generator
from vidlit.module import VideoDiffusionModule


@pytest.fixture(scope="module")
def data(demo, latents):
    made = LatentDataModule(
        demo.dir / "clips", latents, str(demo.dir / "base"), ["9x64x64", "17x48x80"], fps=16, val_fraction=0.5
    )
    made.encode(accelerator="cpu", devices=1)
    return made


@pytest.fixture(scope="module")
def module(demo):
    made = VideoDiffusionModule(str(demo.dir / "base"), fps=16)
    made.configure_model()
    return made


def test_videos_have_their_clips_size_and_repeat(data, module):
    by_bucket = {clip.bucket: clip for clip in data.plan.clips}
    clips = [*by_bucket.values(), data.plan.clips[0]]
    assert len({clip.bucket for clip in clips}) == 2
    samples = SampleVideos(num_steps=2)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    videos = samples.render(module, data.dataset(clips), clips)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module.training  # as it was
    for clip, video in zip(clips, videos, strict=True):
        assert video.shape == (*clip.bucket, 3)
        assert video.dtype == np.uint8
        assert video.std() > 1
    # a clip's video depends on nothing but itself and the seed
    alone = samples.render(module, data.dataset(clips[1:2]), clips[1:2])[0]
    assert np.abs(alone.astype(int) - videos[1]).max() <= 1
    other = SampleVideos(num_steps=2, seed=1).render(module, data.dataset(clips[1:2]), clips[1:2])[0]
    assert np.abs(other.astype(int) - alone).mean() > 1


@torch.no_grad()
def test_samples_of_an_image_to_video_model_start_from_the_clips_first_frame(data, demo, module):
    clips = data.val_clips[:1]
    dataset = data.dataset(clips)
    model = VideoDiffusionModule(str(demo.dir / "base"), fps=16, first_frame=1.0)
    model.transformer = module.transformer
    made = sample_latents(model, dataset, [0], clips, num_steps=3, seed=0)
    latents = dataset[0].latents.float()
    assert torch.equal(made[0, :, :1], latents[:, :1])
    assert (made[0, :, 1:] - latents[:, 1:]).abs().mean() > 0.1
    free = sample_latents(module, dataset, [0], clips, num_steps=3, seed=0)
    assert (made[0, :, 1:] - free[0, :, 1:]).abs().mean() > 1e-3  # what comes after knows of it


@torch.no_grad()
def test_a_perfect_model_draws_the_very_clip(data, module, monkeypatch):
    """With the true velocity the sampler must end in the encoded clip: key, schedule and decoding fit together."""
    (clip,) = data.val_clips[:1]
    dataset = data.dataset([clip])
    sample = dataset[0]
    latents = sample.latents.float()[None]
    noise = torch.randn(latents.shape[1:], generator=keyed_generator("sample", 0, sample.key))[None]
    monkeypatch.setattr(VideoDiffusionModule, "forward", lambda *_: noise - latents)
    (video,) = SampleVideos(num_steps=3).render(module, dataset, [clip])
    expected = to_frames(module.family.decode_latents(module.family.load_vae("cpu"), latents)[0])
    assert np.abs(video.astype(int) - expected).max() <= 1


def test_frames_are_rounded_and_clipped():
    video = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).view(1, 5, 1, 1).expand(3, 5, 2, 4)
    frames = to_frames(video)
    assert frames.shape == (5, 2, 4, 3)
    assert frames[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_files_are_playable_and_named_by_caption(data, tmp_path):
    clips = data.val_clips[:2]
    generator = np.random.default_rng(0)
    videos = [generator.integers(0, 255, (*clip.bucket, 3)).astype(np.uint8) for clip in clips]
    write_samples(tmp_path / "samples", videos, clips, 16.0)
    first, second, captions, sheet = sorted((tmp_path / "samples").iterdir())
    assert sheet.name == "contact_sheet.png"
    assert first.name.startswith("00_")
    assert second.name.startswith("01_")
    assert json.loads(captions.read_text()) == {
        first.name: clips[0].source.caption,
        second.name: clips[1].source.caption,
    }
    words = clips[0].source.caption.lower().split()
    assert "_".join(words[:3]) in first.name
    for path, clip in ((first, clips[0]), (second, clips[1])):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert float(stream.average_rate) == 16
            frames = list(container.decode(stream))
        assert (len(frames), frames[0].height, frames[0].width) == tuple(clip.bucket)
    with Image.open(sheet) as picture:
        assert picture.width >= max(5 * clip.bucket.width for clip in clips)
        assert picture.height > sum(clip.bucket.height for clip in clips)
