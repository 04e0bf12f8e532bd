"""Latents from prompt embeddings: the sampler's loop, the schedule is diffusers'."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.loss import VelocityModel
from vidlit.diffusion.noising import without_first_frame


class Scheduler(Protocol):
    """Where to ask the model, and how to go on from there.

    diffusers' flow-matching schedulers are such. A family whose scheduler is of another kind (other coordinates, other
    prediction) wraps it so that ``step`` takes and gives latents of this project's path,
    ``(1 - sigma) * latents + sigma * noise``, and a velocity. If it does not start at sigma 1, it says by
    ``init_noise_sigma`` what the start noise is multiplied with.
    """

    timesteps: Tensor
    """(N,), what ``step`` takes"""
    sigmas: Tensor
    """(N,) or longer: the noise level at each timestep, as the model is asked"""

    def step(self, velocity: Tensor, timestep: Tensor, latents: Tensor, *, return_dict: bool) -> Any:
        """A tuple that begins with the latents (B, C, F, H, W) at the next noise level."""


@torch.no_grad()
def generate(
    model: VelocityModel,
    scheduler: Scheduler,
    noise: Tensor,
    conditioning: Conditioning,
    null_conditioning: Conditioning | None = None,
    guidance_scale: float = 1.0,
    first_frame: Tensor | None = None,
) -> Tensor:
    """Walk from noise to latents along a schedule.

    Args:
        model: the denoising transformer, in eval mode.
        scheduler: of the model's family, with its timesteps set.
        noise: (B, C, F, H, W) float32, the start.
        conditioning: of B samples.
        null_conditioning: of the empty prompt, for one sample or B; needed when guidance is on. Extras that it lacks,
            such as the image of an image-to-video base, are those of ``conditioning``.
        guidance_scale: 1 is no guidance; above, ``v_null + scale * (v_prompt - v_null)``.
        first_frame: (B, C, 1, H, W), latents of the frame to start from, for families that take one.

    Returns:
        (B, C, F, H, W) float32.

    Raises:
        ValueError: guidance without a null prompt.
    """
    if guidance_scale != 1.0 and null_conditioning is None:
        raise ValueError(f"guidance_scale {guidance_scale} needs the embedding of the empty prompt.")
    if null_conditioning is not None:
        null_conditioning = null_conditioning.expand(len(noise))
        null_conditioning = null_conditioning._replace(extras=conditioning.extras | null_conditioning.extras)
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        sigmas = sigma.to(latents).expand(len(latents))
        if first_frame is not None:
            latents = torch.cat([first_frame.to(latents), latents[:, :, 1:]], dim=2)
            sigmas = without_first_frame(sigmas, torch.ones_like(sigmas, dtype=torch.bool), latents.shape[2])
        velocity = model(latents, sigmas, conditioning).float()
        if guidance_scale != 1.0 and null_conditioning is not None:
            without = model(latents, sigmas, null_conditioning).float()
            velocity = without + guidance_scale * (velocity - without)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents if first_frame is None else torch.cat([first_frame.to(latents), latents[:, :, 1:]], dim=2)
