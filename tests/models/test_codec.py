import math

import diffusers
import numpy as np
import pytest
import torch

from vidlit.data.demo_clips import Scene
from vidlit.models.codec import PatchDCTCodec


def demo_video(number):
    """A demo clip's first 9 frames as (1, 3, 9, H, W) in [-1, 1], cropped to whole patches."""
    frames = Scene.draw(number).render(np.random.default_rng([number, 0]))[:9]
    height, width = (side // 16 * 16 for side in frames.shape[1:3])
    return torch.from_numpy(frames[:, :height, :width]).permute(3, 0, 1, 2)[None].float() / 127.5 - 1


def psnr(video, other):
    """Of values in [-1, 1], in dB."""
    return 10 * math.log10(4 / float((video - other).square().mean()))


@pytest.fixture(scope="module")
def videos():
    return [demo_video(number) for number in range(12)]


def test_kernel_is_orthonormal():
    """So the transpose decodes, and white noise keeps its variance."""
    rows = PatchDCTCodec().kernel.flatten(1)
    assert rows.shape == (64, 3 * 4 * 16 * 16)
    torch.testing.assert_close(rows @ rows.T, torch.eye(64), atol=1e-5, rtol=0)


def test_shapes_are_those_of_a_causal_video_vae():
    codec = PatchDCTCodec()
    for num_frames, latent_frames in ((1, 1), (5, 2), (17, 5)):
        latents = codec.encode(torch.zeros(2, 3, num_frames, 48, 80)).latent_dist.mode()
        assert latents.shape == (2, 64, latent_frames, 3, 5)
        assert codec.decode(latents).sample.shape == (2, 3, num_frames, 48, 80)


def test_demo_clips_are_well_reconstructed(videos):
    codec = PatchDCTCodec()
    values = [psnr(codec.decode(codec.encode(video).latent_dist.mode()).sample, video) for video in videos]
    assert np.mean(values) > 15
    trivial = np.mean([psnr(video.mean(dim=(2, 3, 4), keepdim=True).expand_as(video), video) for video in videos])
    assert np.mean(values) > trivial + 4  # far above the clip's mean colour, or it would be no codec


def test_decode_then_encode_is_exact():
    """What latents can say survives: the codec is a projection."""
    codec = PatchDCTCodec()
    latents = torch.randn(1, 64, 3, 2, 2)
    latents[:, :, 0] = codec.encode(torch.rand(1, 3, 1, 32, 32)).latent_dist.mode()[:, :, 0]  # a still first patch
    again = codec.encode(codec.decode(latents).sample).latent_dist.mode()
    torch.testing.assert_close(again[:, :, 1:], latents[:, :, 1:], atol=1e-4, rtol=0)


def test_a_still_first_frame_is_coded_like_a_still_patch():
    still = torch.rand(1, 3, 1, 32, 32)
    codec = PatchDCTCodec()
    alone = codec.encode(still).latent_dist.mode()
    moving = codec.encode(torch.cat([still, torch.rand(1, 3, 4, 32, 32)], dim=2)).latent_dist.mode()
    torch.testing.assert_close(moving[:, :, :1], alone)


def test_saved_and_loaded_it_is_the_same_bit_for_bit(tmp_path, videos):
    codec = PatchDCTCodec(scaling_factor=0.7)
    codec.fit_statistics(videos[:4])
    codec.save_pretrained(tmp_path)
    loaded = PatchDCTCodec.from_pretrained(tmp_path)
    assert dict(loaded.config).items() >= {"latent_channels": 64, "scaling_factor": 0.7}.items()
    for name, value in codec.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    latents = codec.encode(videos[0]).latent_dist.mode()
    assert torch.equal(loaded.encode(videos[0]).latent_dist.mode(), latents)
    assert torch.equal(loaded.decode(latents).sample, codec.decode(latents).sample)
    assert loaded.temporal_compression_ratio == 4
    assert loaded.spatial_compression_ratio == 16


def test_statistics_are_mean_and_root_deviation_of_the_pool(videos):
    codec = PatchDCTCodec()
    codec.fit_statistics(videos[:6])
    pool = torch.cat([codec.encode(v).latent_dist.mode().transpose(0, 1).flatten(1) for v in videos[:6]], dim=1)
    torch.testing.assert_close(codec.latents_mean, pool.mean(1))
    normalised = (pool - codec.latents_mean[:, None]) / codec.latents_std[:, None]
    deviation = pool.std(1)
    torch.testing.assert_close(normalised.std(1), (deviation / deviation.mean()).sqrt(), atol=1e-4, rtol=1e-4)


def test_nothing_of_it_is_trained():
    assert not any(parameter.requires_grad for parameter in PatchDCTCodec().parameters())


def test_the_whole_demo_base_loads_as_a_pipeline(demo):
    pipeline = diffusers.LTXPipeline.from_pretrained(demo.dir / "base")
    assert type(pipeline.vae).__name__ == "PatchDCTCodec"
    assert pipeline.vae_spatial_compression_ratio == 16
    assert pipeline.vae_temporal_compression_ratio == 4


def test_it_loads_in_bfloat16_as_on_a_gpu(tmp_path):
    PatchDCTCodec(latent_channels=8).save_pretrained(tmp_path)
    loaded = PatchDCTCodec.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.kernel.dtype == torch.bfloat16
    assert torch.equal(loaded.kernel, PatchDCTCodec(latent_channels=8).kernel.bfloat16())
