"""The denoising loss: one function for training, validation and the training subset, and for every stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.diffusion.conditions import Condition, without_noise
from vidlit.diffusion.loss_weights import weighted_mean
from vidlit.diffusion.noising import num_positions, stratum_given, stratum_noise, stratum_sigmas
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS, Given, as_given, by_stream


class VelocityModel(Protocol):
    """Anything that predicts a velocity: a family's transformer with its conventions hidden."""

    def __call__(self, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor | dict[str, Tensor]:
        """Noisy latents (B, C, F, H, W) at sigmas (B,), or (B, F) where frames differ, to (B, C, F, H, W).

        Further streams are noisy among the conditioning's extras, at its levels; then a dict has the velocity of each.
        """


def denoising_loss(
    model: VelocityModel, noising: RectifiedFlow, batch: LatentBatch, noise: Given, sigmas: Given
) -> Given:
    """Mean squared error of the predicted velocity, for each sample, weighted by its noise level.

    Frames at sigma 0 are given, not learned: they have no part in it. Where clips have masks, the picture's is a mean
    over places that the batch's weights say.

    Args:
        model: the denoising transformer.
        noising: the forward process.
        batch: B clips of one resolution.
        noise: (B, C, F, H, W); or of every stream, by name.
        sigmas: (B,), the picture's (B, F) where the latent frames of a sample differ in noise; of every stream by name
            if the noise was so.

    Returns:
        (B,) float32, of every stream by name if the noise was so.

    Raises:
        ValueError: the model predicts other streams than noise was given for.
    """
    noises = by_stream(noise)
    velocities = by_stream(model(*noisy_inputs(noising, batch, noise, sigmas)))
    if velocities.keys() != noises.keys():
        raise ValueError(f"the model predicts {sorted(velocities)}, but noise was given for {sorted(noises)}.")
    targets = {name: noising.target(batch.stream(name).float(), noises[name]) for name in noises}
    return as_given(velocity_errors(noising, velocities, targets, sigmas, batch.weights), noise)


def noisy_inputs(
    noising: RectifiedFlow, batch: LatentBatch, noise: Given, sigmas: Given
) -> tuple[Tensor, Tensor, Conditioning]:
    """What a model is given of a batch at a noise level: noisy latents, sigmas, and the conditioning.

    Args:
        noising: the forward process.
        batch: B clips of one resolution.
        noise: as for :func:`denoising_loss`.
        sigmas: as for :func:`denoising_loss`.
    """
    levels = by_stream(sigmas)
    noisy = {
        name: noising.add_noise(batch.stream(name).float(), each, levels[name])
        for name, each in by_stream(noise).items()
    }
    latents = noisy.pop(LATENTS)
    conditioning = batch.conditioning.with_streams(noisy, {name: levels[name] for name in noisy})
    return latents, levels[LATENTS], conditioning


def velocity_errors(
    noising: RectifiedFlow,
    velocities: Mapping[str, Tensor],
    targets: Mapping[str, Tensor],
    sigmas: Given,
    weights: Tensor | None = None,
) -> dict[str, Tensor]:
    """Mean squared error (B,) of each stream's velocity, weighted by noise level.

    Args:
        noising: the forward process.
        velocities: (B, ...) by stream.
        targets: the same, in float32.
        sigmas: as for :func:`denoising_loss`.
        weights: (B, 1, F, H, W), of the picture's places; ``None`` where all count alike.
    """
    levels = by_stream(sigmas)
    return {
        name: _loss_of_stream(noising, velocities[name], target, levels[name], weights if name == LATENTS else None)
        for name, target in targets.items()
    }


def _loss_of_stream(
    noising: RectifiedFlow, velocity: Tensor, target: Tensor, sigmas: Tensor, weights: Tensor | None
) -> Tensor:
    errors = (velocity.float() - target).square()
    if weights is not None:
        levels = sigmas.view(len(errors), 1, -1, 1, 1)
        return weighted_mean(errors * noising.weight(levels), weights * (levels > 0))
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
    conditions: Sequence[Condition] = (),
    streams: Sequence[str] = (LATENTS,),
) -> dict[str, Tensor]:
    """The loss of each clip at its own fixed noise and sigmas, so that two checks of one clip can be compared.

    Measured on public fine-tuning logs, almost all of a diffusion loss's variance is the draw of sigma and noise;
    with both tied to the clip, the difference between two checks loses that variance.

    Args:
        model: the denoising transformer, in eval mode.
        noising: the forward process.
        batch: B clips of one resolution.
        seed: of the run.
        num_strata: noise levels for each clip.
        conditions: latent frames that shares of the evaluations are given without noise; which, depends on seed, clip
            and stratum.
        streams: names of those that the model denoises.

    Returns:
        (B, num_strata) float32 of every stream; see :func:`vidlit.diffusion.noising.stratum_sigmas` for the sigmas,
        which are each stream's own.
    """
    device = batch.latents.device
    noising = noising.unweighted()
    shapes = {name: tuple(batch.stream(name).shape[1:]) for name in streams}
    sigmas = {
        name: stratum_sigmas(noising, batch.keys, [num_positions(shape)] * len(batch.keys), num_strata).to(device)
        for name, shape in shapes.items()
    }
    losses: dict[str, list[Tensor]] = {name: [] for name in streams}
    for stratum in range(num_strata):
        noise = {
            name: stratum_noise(seed, batch.keys, stratum, shape, name).to(device) for name, shape in shapes.items()
        }
        levels = {name: each[:, stratum] for name, each in sigmas.items()}
        if conditions:
            given = stratum_given(conditions, seed, batch.keys, stratum, shapes[LATENTS][1])
            levels[LATENTS] = without_noise(levels[LATENTS], given.to(device))
        for name, loss in denoising_loss(model, noising, batch, noise, levels).items():
            losses[name].append(loss)
    return {name: torch.stack(each, dim=1) for name, each in losses.items()}
