"""Noise and noise levels of training steps, of scored clips and of samples.

Every random number comes from a generator keyed by what it is for, never from a global one. So a step's noise is a
function of (seed, position, row of the batch), a validation clip's of (seed, clip, stratum).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vidlit.diffusion.conditions import Condition, given_frames, without_noise
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError

NUM_LEVELS = 16
"""Noise levels that paired validation covers over the clips, a few of them for each clip."""


@dataclass(frozen=True)
class Noise:
    """Noise in training, and the noise levels at which clips are scored.

    Args:
        process: forward process, and the distribution of training sigmas; ``None`` for the family's own.
        num_strata: number of noise levels at which each validation clip is scored at every check.

    Raises:
        UserError: an option is out of range.
    """

    process: RectifiedFlow | None = None
    num_strata: int = 2

    def __post_init__(self) -> None:
        if self.num_strata < 1:
            raise UserError(f"model.noise.num_strata is {self.num_strata}: it must be at least 1.")


def keyed_generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose stream is a function of the key alone."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def stream_generator(purpose: str, stream: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the noise of one stream. The picture's key does not name it: it is older than the others."""
    names = (purpose,) if stream == LATENTS else (purpose, stream)
    return keyed_generator(*names, *key, device=device)


def level_of_sample(sigmas: Tensor) -> Tensor:
    """Noise levels (B,) of samples from (B,), or from (B, F): that of the noisiest frame, where others are given."""
    return sigmas if sigmas.dim() == 1 else sigmas.amax(dim=1)


def num_positions(shape: Sequence[int]) -> int:
    """Latent positions of one sample of a stream (C, ...), on which the shift of its noise levels may depend."""
    return math.prod(shape[1:])


def training_noise(
    noising: RectifiedFlow,
    seed: int,
    position: int,
    rows: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    *,
    conditions: Sequence[Condition] = (),
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Noise and noise levels of a training batch: of each sample a function of (seed, position, row) alone.

    Args:
        noising: how sigmas are drawn: those of each stream by themselves, by its own number of positions.
        seed: of the run.
        position: of the batch in the run.
        rows: of each sample in the global batch.
        shapes: of one sample, by stream: (C, F, H, W) of its latents, then any others.
        conditions: latent frames that shares of the samples are given without noise.
        device: to draw on.

    Returns:
        Noise (B, ...) and sigmas (B,) by stream; the picture's (B, F) by frame where there are conditions.
    """
    noise, sigmas = {}, {}
    for stream, shape in shapes.items():
        generators = [stream_generator("train", stream, seed, position, row, device=device) for row in rows]

        def draw(number: int = 1, generators: Sequence[torch.Generator] = generators) -> Tensor:
            return torch.stack(
                [torch.rand(number, generator=each, device=device, dtype=torch.float32) for each in generators]
            )

        sigmas[stream] = noising.at(num_positions(shape)).quantile(draw()[:, 0])
        if stream == LATENTS and conditions:
            chosen = draw()[:, 0]
            sigmas[stream] = without_noise(sigmas[stream], given_frames(conditions, chosen, shape[1], draw))
        noise[stream] = torch.stack([torch.randn(*shape, generator=each, device=device) for each in generators])
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


def stratum_given(conditions: Sequence[Condition], seed: int, keys: Tensor, stratum: int, num_frames: int) -> Tensor:
    """Which latent frames (B, F) bool of clips are given at a stratum: on the CPU, a function of (seed, clip, stratum).

    Args:
        conditions: of which a clip has one or none.
        seed: of the run.
        keys: (B,) int64 clip keys.
        stratum: number of the stratum.
        num_frames: F, latent frames of a clip.
    """

    def draw(number: int) -> Tensor:
        generators = [keyed_generator("paired frames", seed, key, stratum) for key in keys.tolist()]
        return torch.stack([torch.rand(number, generator=each) for each in generators])

    return given_frames(conditions, stratum_draws(seed, keys, stratum), num_frames, draw)
