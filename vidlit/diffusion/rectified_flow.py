"""The forward process: how latents become noisy, and what the transformer is asked to predict.

One sign convention for the whole project: ``noisy = (1 - sigma) * latents + sigma * noise`` and
``target = noise - latents`` (a velocity), with sigma 0 for clean latents and 1 for pure noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from vidlit.errors import UserError

_LEAST_STRETCHED = 1e-3
"""Where draws below a stretched distribution are folded back, as in the trainer of LTX-2."""
_BISECTIONS = 40
"""Halvings that find a mixture's quantile: 2 ** -40 is far below what float32 tells apart."""


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
        stretch: two probabilities whose sigmas become 0 and 1, all others linearly; draws below are folded back, those
            above are 1: as in the trainer of LTX-2 (``ltx-trainer``, ``timestep_samplers.py``, with .005 and .999).
            ``None`` for no stretch.
        uniform_share: share of the draws that are uniform in sigma, whatever the rest is.
        min_sigma: lowest sigma trained on; the distribution is cut off below it, and keeps its shape above.
        max_sigma: highest sigma trained on; the distribution is cut off above it, and keeps its shape below.
        weighting: weight of the training loss by sigma; validation is not weighted. ``cosmap`` is
            ``2 / (pi (1 - 2 s + 2 s^2))``, section 3.1 of the same paper; ``min_snr`` is ``s^2 min(SNR, snr_gamma)``
            with ``SNR = ((1 - s) / s)^2``: the weight of https://arxiv.org/abs/2303.09556 on the error of the clean
            latents, which is ``s^2`` times the velocity's.
        snr_gamma: highest SNR that counts in ``min_snr``.

    Raises:
        UserError: an option is out of range.
    """

    distribution: Literal["uniform", "logit_normal"] = "logit_normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float | ResolutionShift = 1.0
    stretch: tuple[float, float] | None = None
    uniform_share: float = 0.0
    min_sigma: float = 0.0
    max_sigma: float = 1.0
    weighting: Literal["none", "cosmap", "min_snr"] = "none"
    snr_gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_sigma < self.max_sigma <= 1:
            raise UserError(
                f"model.noise.process goes from min_sigma {self.min_sigma:g} to max_sigma {self.max_sigma:g}: sigmas "
                "rise, and lie between 0 and 1."
            )
        if self.stretch is not None and not 0 < self.stretch[0] < self.stretch[1] < 1:
            raise UserError(
                f"model.noise.process.stretch is {list(self.stretch)}: two probabilities that rise, between 0 and 1."
            )
        if not 0 <= self.uniform_share <= 1:
            raise UserError(f"model.noise.process.uniform_share is {self.uniform_share:g}: it is a share, from 0 to 1.")

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

    def between(self, low: float, high: float) -> Self:
        """The same, cut off outside two sigmas: what is left of it for an expert."""
        return replace(self, min_sigma=max(self.min_sigma, low), max_sigma=min(self.max_sigma, high))

    def quantile(self, probability: Tensor) -> Tensor:
        """Sigma below which a training draw falls with this probability: the inverse CDF, elementwise."""
        low, high = (
            float(self.share_below(torch.tensor(each, dtype=torch.float64)))
            for each in (self.min_sigma, self.max_sigma)
        )
        return self._quantile(low + (high - low) * probability)

    def share_below(self, sigmas: Tensor) -> Tensor:
        """Share of the draws below these sigmas before any are cut off: the CDF, elementwise."""
        drawn = self._share_drawn_below(sigmas).where(sigmas > 0, 0.0).where(sigmas < 1, 1.0)
        return self.uniform_share * sigmas + (1 - self.uniform_share) * drawn

    def _quantile(self, probability: Tensor) -> Tensor:
        if self.stretch is None and self.uniform_share == 0:
            return self._shifted(probability)
        low, high = torch.zeros_like(probability), torch.ones_like(probability)
        for _ in range(_BISECTIONS):  # the CDF of a mixture has no inverse in closed form
            middle = (low + high) / 2
            below = self.share_below(middle) < probability
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def _share_drawn_below(self, sigmas: Tensor) -> Tensor:
        """CDF of the draws that are not uniform."""
        if self.stretch is None:
            return self._share_shifted_below(sigmas)
        first, last = self._shifted(torch.tensor(self.stretch, dtype=torch.float64)).tolist()
        folded = 2 * _LEAST_STRETCHED - sigmas
        below, folded_below = (
            self._share_shifted_below((first + (last - first) * each).clamp(min=0.0)) for each in (sigmas, folded)
        )
        return (below - folded_below).clamp(min=0.0)

    def _shifted(self, probability: Tensor) -> Tensor:
        """Inverse CDF of the distribution, shifted."""
        assert not isinstance(self.shift, ResolutionShift), "at() first"
        sigma = probability
        if self.distribution == "logit_normal":
            inside = probability.clamp(1e-6, 1 - 1e-6)
            sigma = torch.sigmoid(self.mean + self.std * torch.special.ndtri(inside))
        return self.shift * sigma / (1 + (self.shift - 1) * sigma)

    def _share_shifted_below(self, sigmas: Tensor) -> Tensor:
        """CDF of the distribution, shifted."""
        assert not isinstance(self.shift, ResolutionShift), "at() first"
        unshifted = sigmas / (self.shift - (self.shift - 1) * sigmas)
        if self.distribution == "uniform":
            return unshifted
        share: Tensor = torch.special.ndtr((torch.logit(unshifted) - self.mean) / self.std)
        return share

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
