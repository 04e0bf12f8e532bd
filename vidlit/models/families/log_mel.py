"""Sound to the log-mel spectrogram that LTX-2's audio autoencoder reads."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
SOUND_PREPROCESSING = "span-16-khz-log-mel-1"
"""How a spectrogram is made from a file, for the identity of latents. Goes up whenever
:func:`vidlit.video.sound.read_sound` or :func:`log_mel` gives other numbers."""
HOP = 160
_WINDOW = 1024  # of the Fourier transform, too; LTX-2's own files name it, diffusers' configs do not
SHORTEST = _WINDOW // 2 + 1
"""Samples of the shortest sound: its ends are mirrored for half a window."""
_MAX_HERTZ = SAMPLE_RATE / 2
_FLOOR = 1e-5


def log_mel(sound: Tensor, num_mels: int = 64) -> Tensor:
    """Natural logarithm of the mel spectrogram of magnitudes, as ``AudioProcessor`` of Lightricks' ltx-core makes it.

    Args:
        sound: (B, 2, n) float32 at :data:`SAMPLE_RATE`, with n at least :data:`SHORTEST`.
        num_mels: bands of frequency; 64 in published models.

    Returns:
        (B, 2, n // 160 + 1, num_mels) float32; silence is log(1e-5), about -11.51.
    """
    window = torch.hann_window(_WINDOW, device=sound.device)
    spectrum = torch.stft(sound.flatten(0, 1), _WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True)
    mels = spectrum.abs().transpose(1, 2) @ _mel_filters(num_mels).to(sound.device)
    return mels.clamp(min=_FLOOR).log().view(*sound.shape[:2], -1, num_mels)


@cache
def _mel_filters(num_mels: int) -> Tensor:
    """(513, num_mels): Slaney's scale and norm."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        _WINDOW // 2 + 1, num_mels, 0.0, _MAX_HERTZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).float()
