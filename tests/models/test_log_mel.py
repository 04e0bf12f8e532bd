"""Sound to log-mel spectrograms."""

import math

import numpy as np
import pytest
import torch

from vidlit.models.families.log_mel import HOP, SAMPLE_RATE, SHORTEST, log_mel

NUM_MELS = 64

NOISE = torch.randn(2, 2, 20_000, generator=torch.Generator().manual_seed(0)) * 0.1


def hertz(mels):
    """Slaney's scale: linear up to 1000 Hz, 27 steps of equal ratio to 6400 Hz from there."""
    return np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))


def test_a_frame_is_what_the_definition_says():
    mels = log_mel(NOISE)
    assert mels.shape == (2, 2, 20_000 // HOP + 1, NUM_MELS)
    assert mels.dtype == torch.float32
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    edges = hertz(np.linspace(0, 15 + 27 * math.log(8) / math.log(6.4), NUM_MELS + 2))
    bins = np.arange(513) * SAMPLE_RATE / 1024
    mirrored = np.pad(NOISE.double().numpy(), ((0, 0), (0, 0), (512, 512)), mode="reflect")
    for frame in (0, 60, 125):
        spectrum = np.abs(np.fft.rfft(mirrored[..., frame * HOP :][..., :1024] * window))
        for mel, (low, middle, high) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
            triangle = np.clip(np.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)), 0, None)
            expected = np.log(np.maximum(spectrum @ triangle * 2 / (high - low), 1e-5))
            np.testing.assert_allclose(mels[:, :, frame, mel], expected, atol=1e-4)


def test_silence_is_the_floor():
    mels = log_mel(torch.zeros(1, 2, SHORTEST))
    torch.testing.assert_close(mels, torch.full_like(mels, math.log(1e-5)))


def test_it_is_torchaudios():
    torchaudio = pytest.importorskip("torchaudio")
    theirs = torchaudio.transforms.MelSpectrogram(
        SAMPLE_RATE, 1024, 1024, HOP, 0.0, 8000.0, n_mels=64, power=1.0, norm="slaney", mel_scale="slaney"
    )(NOISE)
    torch.testing.assert_close(log_mel(NOISE), theirs.clamp(min=1e-5).log().transpose(2, 3), atol=1e-4, rtol=0)
