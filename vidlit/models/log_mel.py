"""Sound to the log-mel spectrogram that LTX-2's audio autoencoder reads."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
NUM_MELS = 64
HOP = 160
_WINDOW = 1024  # of the Fourier transform, too; LTX-2's own files name it, diffusers' configs do not
_MAX_HERTZ = SAMPLE_RATE / 2
_FLOOR = 1e-5


def log_mel(sound: Tensor) -> Tensor:
    """Natural logarithm of the mel spectrogram of magnitudes, as ``AudioProcessor`` of Lightricks' ltx-core makes it.

    Args:
        sound: (B, 2, n) float32 at :data:`SAMPLE_RATE`; ends are mirrored, so n is more than half a window of 1024.

    Returns:
        (B, 2, n // 160 + 1, 64) float32; silence is log(1e-5), about -11.51.
    """
    window = torch.hann_window(_WINDOW, device=sound.device)
    spectrum = torch.stft(sound.flatten(0, 1), _WINDOW, HOP, window=window, pad_mode="reflect", return_complex=True)
    mels = spectrum.abs().transpose(1, 2) @ _mel_filters().to(sound.device)
    return mels.clamp(min=_FLOOR).log().view(*sound.shape[:2], -1, NUM_MELS)


@cache
def _mel_filters() -> Tensor:
    """(513, 64): Slaney's scale and norm."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        _WINDOW // 2 + 1, NUM_MELS, 0.0, _MAX_HERTZ, SAMPLE_RATE, norm="slaney", mel_scale="slaney"
    )
    return torch.from_numpy(filters).float()
