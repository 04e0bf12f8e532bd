"""The denoising loss: one function for training, validation and the train probe."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from vidlit.data.batch import LatentBatch
from vidlit.diffusion.noising import RectifiedFlow, stratum_noise, stratum_sigmas


class VelocityModel(Protocol):
    """Anything that predicts a velocity: a family's transformer with its conventions hidden."""

    def __call__(self, noisy: Tensor, sigmas: Tensor, prompt_embeds: Tensor, prompt_attention_mask: Tensor) -> Tensor:
        """Noisy latents (B, C, F, H, W), sigmas (B,), prompts (B, L, D) and mask (B, L) to (B, C, F, H, W)."""


def denoising_loss(
    model: VelocityModel, noising: RectifiedFlow, batch: LatentBatch, noise: Tensor, sigmas: Tensor
) -> Tensor:
    """Mean squared error of the predicted velocity, for each sample.

    Args:
        model: the denoising transformer.
        noising: the forward process.
        batch: B clips of one resolution.
        noise: (B, C, F, H, W).
        sigmas: (B,).

    Returns:
        (B,) float32.
    """
    latents = batch.latents.float()
    noisy = noising.add_noise(latents, noise, sigmas)
    velocity = model(noisy, sigmas, batch.prompt_embeds, batch.prompt_attention_mask)
    return (velocity.float() - noising.target(latents, noise)).square().flatten(1).mean(1)


def paired_losses(
    model: VelocityModel, noising: RectifiedFlow, batch: LatentBatch, seed: int, num_strata: int
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

    Returns:
        (B, num_strata) float32; see :func:`vidlit.diffusion.noising.stratum_sigmas` for the sigmas.
    """
    device = batch.latents.device
    shape = tuple(batch.latents.shape[1:])
    sigmas = stratum_sigmas(noising, batch.keys, num_strata).to(device)
    losses = []
    for stratum in range(num_strata):
        noise = stratum_noise(seed, batch.keys, stratum, shape).to(device)
        losses.append(denoising_loss(model, noising, batch, noise, sigmas[:, stratum]))
    return torch.stack(losses, dim=1)
