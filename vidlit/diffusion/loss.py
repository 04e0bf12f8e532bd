"""The denoising loss: one function for training, validation and the training subset."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.noising import (
    RectifiedFlow,
    stratum_draws,
    stratum_noise,
    stratum_sigmas,
    without_first_frame,
)


class VelocityModel(Protocol):
    """Anything that predicts a velocity: a family's transformer with its conventions hidden."""

    def __call__(self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """Noisy latents (B, C, F, H, W) at sigmas (B,), or (B, F) where frames differ, to (B, C, F, H, W)."""


def denoising_loss(
    model: VelocityModel, noising: RectifiedFlow, batch: LatentBatch, noise: Tensor, sigmas: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity, for each sample, weighted by its noise level.

    Frames at sigma 0 are given, not learned: they have no part in it.

    Args:
        model: the denoising transformer.
        noising: the forward process.
        batch: B clips of one resolution.
        noise: (B, C, F, H, W).
        sigmas: (B,), or (B, F) where the latent frames of a sample differ in noise.

    Returns:
        (B,) float32.
    """
    latents = batch.latents.float()
    noisy = noising.add_noise(latents, noise, sigmas)
    velocity = model(noisy, sigmas, batch.conditioning)
    errors = (velocity.float() - noising.target(latents, noise)).square()
    if sigmas.dim() == 1:
        return errors.flatten(1).mean(1) * noising.weight(sigmas)
    by_frame = errors.mean(dim=(1, 3, 4)) * noising.weight(sigmas)
    noised = (sigmas > 0).float()
    return (by_frame * noised).sum(1) / noised.sum(1)


def paired_losses(
    model: VelocityModel,
    noising: RectifiedFlow,
    batch: LatentBatch,
    seed: int,
    num_strata: int,
    first_frame: float = 0.0,
) -> Tensor:
    """The loss of each clip at its own fixed noise and sigmas, so that two checks of one clip can be compared.

    Measured on public fine-tuning logs, almost all of a diffusion loss's variance is the draw of sigma and noise;
    with both tied to the clip, the difference between two checks loses that variance.

    Args:
        model: the denoising transformer, in eval mode.
        noising: the forward process.
        batch: B clips of one resolution.
        seed: of the run.
        num_strata: noise levels for each clip.
        first_frame: share of the evaluations that are given the clip's first latent frame without noise; which, depends
            on seed, clip and stratum.

    Returns:
        (B, num_strata) float32; see :func:`vidlit.diffusion.noising.stratum_sigmas` for the sigmas.
    """
    device = batch.latents.device
    noising = noising.unweighted()
    shape = tuple(batch.latents.shape[1:])
    num_tokens = [batch.latents[0, 0].numel()] * len(batch.keys)
    sigmas = stratum_sigmas(noising, batch.keys, num_tokens, num_strata).to(device)
    losses = []
    for stratum in range(num_strata):
        noise = stratum_noise(seed, batch.keys, stratum, shape).to(device)
        levels = sigmas[:, stratum]
        if first_frame > 0:
            given = stratum_draws(seed, batch.keys, stratum) < first_frame
            levels = without_first_frame(levels, given.to(device), shape[1])
        losses.append(denoising_loss(model, noising, batch, noise, levels))
    return torch.stack(losses, dim=1)
