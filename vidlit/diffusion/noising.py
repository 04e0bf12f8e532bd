"""The forward process: how latents become noisy, and what the transformer is asked to predict.

One sign convention for the whole project: ``noisy = (1 - sigma) * latents + sigma * noise`` and
``target = noise - latents`` (a velocity), with sigma 0 for clean latents and 1 for pure noise.

Every random number comes from a generator keyed by what it is for, never from a global one. So a step's noise is a
function of (seed, position, row of the batch), a validation clip's of (seed, clip, stratum).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError

NUM_LEVELS = 16
"""Noise levels that paired validation covers over the clips, a few of them for each clip."""


@dataclass(frozen=True)
class ResolutionShift:
    """A shift that grows with the size of the video: larger videos need more noise to lose what they show.

    The logarithm of the shift is a line over the number of latent positions (appendix of
    https://arxiv.org/abs/2403.03206; the names are those of diffusers' schedulers).

    Args:
        base_shift: logarithm of the shift at ``base_tokens``.
        max_shift: logarithm of the shift at ``max_tokens``.
        base_tokens: latent positions of a small video.
        max_tokens: latent positions of a large one.
    """

    base_shift: float = 0.5
    max_shift: float = 1.15
    base_tokens: int = 256
    max_tokens: int = 4096

    def at(self, num_tokens: int) -> float:
        """The shift of a video of this many latent positions."""
        slope = (self.max_shift - self.base_shift) / (self.max_tokens - self.base_tokens)
        return math.exp(self.base_shift + slope * (num_tokens - self.base_tokens))


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths from latents to noise (https://arxiv.org/abs/2209.03003) and how training draws their sigmas.

    Args:
        distribution: distribution of the unshifted sigma; ``logit_normal`` is
            ``sigmoid(Normal(mean, std))``, eq. 19 of https://arxiv.org/abs/2403.03206.
        mean: mean of the logit-normal.
        std: standard deviation of the logit-normal.
        shift: shift of sigmas towards noise, ``shift * s / (1 + (shift - 1) * s)``, eq. 23 of the same paper; a
            number, or a line over the size of the video.
        min_sigma: lowest sigma trained on.
        max_sigma: highest sigma trained on.
        weighting: weight of the training loss by sigma; validation is not weighted. ``cosmap`` is
            ``2 / (pi (1 - 2 s + 2 s^2))``, section 3.1 of the same paper; ``min_snr`` is ``s^2 min(SNR, snr_gamma)``
            with ``SNR = ((1 - s) / s)^2``: the weight of https://arxiv.org/abs/2303.09556 on the error of the clean
            latents, which is ``s^2`` times the velocity's.
        snr_gamma: highest SNR that counts in ``min_snr``.
    """

    distribution: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float | ResolutionShift = 1.0
    min_sigma: float = 0.0
    max_sigma: float = 1.0
    weighting: Literal["none", "cosmap", "min_snr"] = "none"
    snr_gamma: float = 5.0

    def at(self, num_tokens: int) -> Self:
        """The same for videos of one size, given in latent positions: a shift that depends on it becomes a number."""
        return replace(self, shift=self.shift.at(num_tokens)) if isinstance(self.shift, ResolutionShift) else self

    def unweighted(self) -> Self:
        """The same with all noise levels counting alike, as validation takes them."""
        return replace(self, weighting="none")

    def weight(self, sigmas: Tensor) -> Tensor:
        """What the squared error of the velocity counts at these sigmas, elementwise."""
        if self.weighting == "cosmap":
            return 2 / (math.pi * (1 - 2 * sigmas + 2 * sigmas**2))
        if self.weighting == "min_snr":
            return torch.minimum((1 - sigmas) ** 2, self.snr_gamma * sigmas**2)
        return torch.ones_like(sigmas)

    def quantile(self, probability: Tensor) -> Tensor:
        """Sigma below which a training draw falls with this probability: the inverse CDF, elementwise."""
        assert not isinstance(self.shift, ResolutionShift), "at() first"
        if self.distribution == "logit_normal":
            inside = probability.clamp(1e-6, 1 - 1e-6)
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(inside))
        else:
            sigma = probability
        sigma = self.shift * sigma / (1 + (self.shift - 1) * sigma)
        return self.min_sigma + (self.max_sigma - self.min_sigma) * sigma

    def sample_sigmas(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Draw (num_samples,) training sigmas on the generator's device."""
        return self.quantile(torch.rand(num_samples, generator=generator, device=generator.device))

    def add_noise(self, latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
        """Latents and noise (B, C, F, H, W) at sigmas (B,), or (B, F) by frame, to noisy latents (B, C, F, H, W).

        At sigmas (B,) they may have any shape (B, ...).
        """
        sigmas = sigmas.view(-1, *[1] * (latents.dim() - 1)) if sigmas.dim() == 1 else sigmas[:, None, :, None, None]
        return (1 - sigmas) * latents + sigmas * noise

    def target(self, latents: Tensor, noise: Tensor) -> Tensor:
        """The velocity (B, C, F, H, W) that the transformer learns."""
        return noise - latents


@dataclass(frozen=True)
class Noise:
    """Noise in training, and the noise levels at which clips are scored.

    Args:
        process: forward process, and the distribution of training sigmas; ``None`` for the family's own.
        num_strata: number of noise levels at which each validation clip is scored at every check.
        first_frame: share of the training samples that are given their first latent frame without noise and learn to
            continue it, for families that can (LTX-Video, Wan 2.2 TI2V-5B). Validation clips are scored with the
            same share, always the same ones at the same noise levels. At 1 the model is for image-to-video only: its
            samples start from their clip's first frame; below 1 they start from noise.

    Raises:
        UserError: an option is out of range.
    """

    process: RectifiedFlow | None = None
    num_strata: int = 2
    first_frame: float = 0.0

    def __post_init__(self) -> None:
        if self.num_strata < 1:
            raise UserError(f"model.noise.num_strata is {self.num_strata}: it must be at least 1.")
        if not 0 <= self.first_frame <= 1:
            raise UserError(f"model.noise.first_frame is {self.first_frame:g}: it is a share, from 0 to 1.")


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def stream_generator(purpose: str, stream: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the noise of one stream. The picture's key does not name it: it is older than the others."""
    names = (purpose,) if stream == LATENTS else (purpose, stream)
    return keyed_generator(*names, *key, device=device)


def without_first_frame(sigmas: Tensor, given: Tensor, num_frames: int) -> Tensor:
    """Noise levels by frame, with none on the first latent frame of samples that are given it.

    Args:
        sigmas: (B,).
        given: (B,) bool, samples whose first frame is given; of a single frame it never is.
        num_frames: latent frames of a sample.

    Returns:
        (B, num_frames).
    """
    by_frame = sigmas[:, None].repeat(1, num_frames)
    if num_frames > 1:
        by_frame[:, 0] = torch.where(given, 0.0, sigmas)
    return by_frame


def level_of_sample(sigmas: Tensor) -> Tensor:
    """Noise levels (B,) of samples from (B,), or from (B, F): that of the noisiest frame, where others are given."""
    return sigmas if sigmas.dim() == 1 else sigmas.amax(dim=1)


def training_noise(
    noising: RectifiedFlow,
    seed: int,
    position: int,
    rows: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    *,
    first_frame: float = 0.0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], Tensor]:
    """Noise and noise levels of a training batch: of each sample a function of (seed, position, row) alone.

    Args:
        noising: how sigmas are drawn, for samples of this size.
        seed: of the run.
        position: of the batch in the run.
        rows: of each sample in the global batch.
        shapes: of one sample, by stream: (C, F, H, W) of its latents, then any others.
        first_frame: share of the samples whose first latent frame gets no noise.
        device: to draw on.

    Returns:
        Noise (B, ...) by stream, and sigmas (B,), or (B, F) by frame where some first frames get none.
    """
    generators = {
        stream: [stream_generator("train", stream, seed, position, row, device=device) for row in rows]
        for stream in shapes
    }
    sigmas = torch.cat([noising.sample_sigmas(1, generator) for generator in generators[LATENTS]])
    if first_frame > 0:
        draws = torch.cat([torch.rand(1, generator=each, device=device) for each in generators[LATENTS]])
        sigmas = without_first_frame(sigmas, draws < first_frame, shapes[LATENTS][1])
    noise = {
        stream: torch.stack([torch.randn(*shape, generator=each, device=device) for each in generators[stream]])
        for stream, shape in shapes.items()
    }
    return noise, sigmas


def start_noise(purpose: str, keys: Sequence[Sequence[int]], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Noise (B, ...) by stream on the CPU to generate from, of each sample a function of its key.

    Args:
        purpose: what is generated.
        keys: of each sample.
        shapes: of one sample, by stream.
    """
    return {
        stream: torch.stack([torch.randn(*shape, generator=stream_generator(purpose, stream, *key)) for key in keys])
        for stream, shape in shapes.items()
    }


def stratum_sigmas(noising: RectifiedFlow, keys: Tensor, num_tokens: Sequence[int], num_strata: int) -> Tensor:
    """Fixed sigmas at which clips are scored: mid-quantiles of the training distribution, rotated over clips.

    The distribution is cut into ``num_strata`` strata of equal probability and each stratum into levels, 16 in all.
    A clip takes one level of every stratum; which one depends on its key, so that all clips together cover all
    levels and each clip's sigmas depend on nothing but its key and its size.

    Args:
        noising: whose training distribution is cut.
        keys: (B,) int64 clip keys.
        num_tokens: latent positions of each clip, on which the shift may depend.
        num_strata: evaluations for each clip.

    Returns:
        (B, num_strata) sigmas, rising, on the CPU.
    """
    levels_each = max(1, NUM_LEVELS // num_strata)
    level = (keys.cpu() % levels_each).double()
    stratum = torch.arange(num_strata, dtype=torch.float64)
    probability = (stratum[None] + (level[:, None] + 0.5) / levels_each) / num_strata
    sizes = zip(num_tokens, probability, strict=True)
    return torch.stack([noising.at(size).quantile(of_a_clip) for size, of_a_clip in sizes]).float()


def stratum_noise(seed: int, keys: Tensor, stratum: int, shape: tuple[int, ...], stream: str = LATENTS) -> Tensor:
    """Fixed noise for one stratum of each clip, drawn on the CPU so that every device gets the same.

    Every second stratum mirrors the noise of the one before: what changes sign with the noise then cancels out of a
    clip's mean, at no cost (antithetic variates; `benchmarks/stopping/variance.py` measures the gain).

    Args:
        seed: of the run.
        keys: (B,) int64 clip keys.
        stratum: number of the stratum.
        shape: of one clip in the stream: (C, F, H, W) of its latents.
        stream: whose noise.

    Returns:
        (B, C, F, H, W), or (B, ...) of the stream, float32 on the CPU.
    """
    pair, mirrored = divmod(stratum, 2)
    generators = [stream_generator("paired", stream, seed, key, 2 * pair) for key in keys.tolist()]
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return -noise if mirrored else noise


def stratum_draws(seed: int, keys: Tensor, stratum: int) -> Tensor:
    """Fixed numbers (B,) between 0 and 1 on the CPU, one for each clip at a stratum: what is decided by a share."""
    return torch.cat(
        [torch.rand(1, generator=keyed_generator("paired draw", seed, key, stratum)) for key in keys.tolist()]
    )
