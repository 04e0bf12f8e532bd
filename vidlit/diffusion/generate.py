"""Latents from prompt embeddings: the sampler's loop, the schedule is diffusers'."""

from __future__ import annotations

import copy
from typing import Any, Protocol

import torch
from torch import Tensor

from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.conditions import GivenFrames, without_noise
from vidlit.diffusion.loss import VelocityModel
from vidlit.diffusion.streams import LATENTS, Given, as_given, by_stream


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
    noise: Given,
    conditioning: Conditioning,
    null_conditioning: Conditioning | None = None,
    guidance_scale: float = 1.0,
    given: GivenFrames | None = None,
) -> Given:
    """Walk from noise to latents along a schedule, all streams in step.

    Args:
        model: the denoising transformer, in eval mode.
        scheduler: of the model's family, with its timesteps set.
        noise: (B, C, F, H, W) float32, the start; or of every stream, by name.
        conditioning: of B samples.
        null_conditioning: of the empty prompt, for one sample or B; needed when guidance is on. Extras that it lacks,
            such as the image of an image-to-video base, are those of ``conditioning``.
        guidance_scale: 1 is no guidance; above, ``v_null + scale * (v_prompt - v_null)``.
        given: latent frames to start from, for families that take clean ones.

    Returns:
        (B, C, F, H, W) float32, of every stream by name if the noise was so.

    Raises:
        ValueError: guidance without a null prompt.
    """
    if guidance_scale != 1.0 and null_conditioning is None:
        raise ValueError(f"guidance_scale {guidance_scale} needs the embedding of the empty prompt.")
    batch_size = len(by_stream(noise)[LATENTS])
    if null_conditioning is not None:
        null_conditioning = null_conditioning.expand(batch_size)
        null_conditioning = null_conditioning._replace(extras=conditioning.extras | null_conditioning.extras)
    streams = {name: start * getattr(scheduler, "init_noise_sigma", 1.0) for name, start in by_stream(noise).items()}
    # A scheduler remembers where it is and, if it is of higher order, what it has seen.
    schedulers = {name: scheduler if name == LATENTS else copy.deepcopy(scheduler) for name in streams}
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        further = {name: noisy for name, noisy in streams.items() if name != LATENTS}
        sigmas = sigma.to(streams[LATENTS]).expand(batch_size)
        levels = dict.fromkeys(further, sigmas)
        if given is not None:
            streams[LATENTS] = given.put_into(streams[LATENTS])
            sigmas = without_noise(sigmas, given.mask)
        velocities = _predict(model, streams[LATENTS], sigmas, conditioning.with_streams(further, levels))
        if guidance_scale != 1.0 and null_conditioning is not None:
            without = _predict(model, streams[LATENTS], sigmas, null_conditioning.with_streams(further, levels))
            velocities = {name: null + guidance_scale * (velocities[name] - null) for name, null in without.items()}
        streams = {
            name: schedulers[name].step(velocities[name], timestep, noisy, return_dict=False)[0]
            for name, noisy in streams.items()
        }
    if given is not None:
        streams[LATENTS] = given.put_into(streams[LATENTS])
    return as_given(streams, noise)


def _predict(model: VelocityModel, *given: Any) -> dict[str, Tensor]:
    return {name: velocity.float() for name, velocity in by_stream(model(*given)).items()}
