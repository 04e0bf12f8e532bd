"""Latents from prompt embeddings: the sampler's loop, the schedule is diffusers'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vidlit.diffusion.loss import VelocityModel


@torch.no_grad()
def generate(
    model: VelocityModel,
    scheduler: Any,
    noise: Tensor,
    prompt_embeds: Tensor,
    prompt_attention_mask: Tensor,
    null_prompt: tuple[Tensor, Tensor] | None = None,
    guidance_scale: float = 1.0,
) -> Tensor:
    """Walk from noise to latents along a diffusers flow-matching schedule.

    Args:
        model: the denoising transformer, in eval mode.
        scheduler: a diffusers flow-matching scheduler whose timesteps are set.
        noise: (B, C, F, H, W) float32, the start.
        prompt_embeds: (B, L, D).
        prompt_attention_mask: (B, L).
        null_prompt: embeds (1, L, D) and mask (1, L) of the empty prompt; needed when guidance is on.
        guidance_scale: 1 is no guidance; above, ``v_null + scale * (v_prompt - v_null)``.

    Returns:
        (B, C, F, H, W) float32.

    Raises:
        ValueError: guidance without a null prompt.
    """
    if guidance_scale != 1.0 and null_prompt is None:
        raise ValueError(f"guidance_scale {guidance_scale} needs the embedding of the empty prompt.")
    latents = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        sigmas = sigma.to(latents).expand(latents.shape[0])
        velocity = model(latents, sigmas, prompt_embeds, prompt_attention_mask).float()
        if guidance_scale != 1.0 and null_prompt is not None:
            embeds, mask = (part.expand(latents.shape[0], *part.shape[1:]) for part in null_prompt)
            without = model(latents, sigmas, embeds, mask).float()
            velocity = without + guidance_scale * (velocity - without)
        latents = scheduler.step(velocity, timestep, latents, return_dict=False)[0]
    return latents
