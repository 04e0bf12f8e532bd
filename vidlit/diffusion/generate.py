"""Latents from prompt embeddings: the sampler's loop, the schedule is diffusers'."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from vidlit.data.batch import Conditioning
from vidlit.diffusion.loss import VelocityModel


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
) -> Tensor:
    """Walk from noise to latents along a schedule.

    Args:
        model: the denoising transformer, in eval mode.
        scheduler: of the model's family, with its timesteps set.
        noise: (B, C, F, H, W) float32, the start.
        conditioning: of B samples.
        null_conditioning: of the empty prompt, for one sample or B; needed when guidance is on.
        guidance_scale: 1 is no guidance; above, ``v_null + scale * (v_prompt - v_null)``.

    Returns:
        (B, C, F, H, W) float32.

    Raises:
        ValueError: guidance without a null prompt.
    """
    if guidance_scale != 1.0 and null_conditioning is None:
        raise ValueError(f"guidance_scale {guidance_scale} needs the embedding of the empty prompt.")
    latents = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        sigmas = sigma.to(latents).expand(latents.shape[0])
        velocity = model(latents, sigmas, conditioning).float()
        if guidance_scale != 1.0 and null_conditioning is not None:
            without = model(latents, sigmas, null_conditioning.expand(latents.shape[0])).float()
            velocity = without + guidance_scale * (velocity - without)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
