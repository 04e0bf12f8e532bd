"""What a training step minimises and what a check scores: one loss, of every part of the model that is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.batch import clip_key
from vidlit.diffusion.caption_dropout import draw_dropped, drop_captions
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import num_positions, stratum_sigmas, training_noise
from vidlit.lightning_internals import is_attached
from vidlit.training.step.open_parts import as_expert
from vidlit.training.step.posterior import draw_conditioning, draw_latents

if TYPE_CHECKING:
    from vidlit.diffusion.batch import LatentBatch
    from vidlit.models.parts import Part
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.sources import Clip


def training_loss(
    module: VideoDiffusionModule, batch: LatentBatch, position: int, step: int
) -> tuple[Tensor, Tensor | float]:
    """Mean loss of a batch: of the parts that the step trains the sum by their weights.

    Noise and sigma of a sample, and its latents where they are drawn from the VAE's posterior, are a function of (seed,
    position in the run, its row in the global batch): no two ranks share noise, a resumed run draws the same, and so
    does one with the global batch spread over other ranks.

    Args:
        module: what is trained.
        batch: B clips of one resolution.
        position: of the batch in the run.
        step: number of the optimizer step that it belongs to.

    Returns:
        The denoising loss, and what ``model.preservation`` adds to it.
    """
    first_row = DataRanks.of(module.trainer if is_attached(module) else None).rank * len(batch.latents)
    rows = range(first_row, first_row + len(batch.latents))
    parts = module.parts.of_step(step, module.noising)
    shapes = {stream.name: batch.stream(stream.name).shape[1:] for stream in module.family.streams}
    noising = module.noising.between(*parts[0].sigmas)
    noise, sigmas = training_noise(
        noising, module.seed, position, rows, shapes, conditions=module.conditions, device=module.device
    )
    batch = draw_latents(module.family, batch, module.seed, position, rows)
    batch = draw_conditioning(module.family, batch, module.seed, position, rows)
    if module.caption_dropout > 0:
        dropped = draw_dropped(module.caption_dropout, module.seed, position, rows)
        batch = batch._replace(conditioning=drop_captions(batch.conditioning, module.prompt(""), dropped))
    model = as_expert(module, parts[0].expert)
    losses = denoising_loss(model, noising, batch, noise, sigmas)
    # What a clip lacks counts nothing, so that it takes no other clip's weight in its place.
    means = [(losses[part.stream] * batch.has(part.marker)).mean() for part in parts]
    loss = torch.stack([part.loss_weight * mean for part, mean in zip(parts, means, strict=True)]).sum()
    if module.preservation is None:
        return loss, 0.0
    return loss, module.preservation.loss(module, model, noising, batch, noise, sigmas, position, rows)


def scored_sigmas(module: VideoDiffusionModule, clips: Sequence[Clip], part: Part) -> Tensor:
    """Noise levels (N, num_strata) at which :func:`check_losses` scores clips for a part.

    Args:
        module: what is trained.
        clips: N of them.
        part: of the model.
    """
    keys = torch.tensor([clip_key(clip.clip_id) for clip in clips], dtype=torch.int64)
    shapes = [module.family.stream_shapes(*clip.bucket)[part.stream] for clip in clips]
    return stratum_sigmas(
        module.noising.between(*part.sigmas), keys, [num_positions(shape) for shape in shapes], module.num_strata
    )


def check_losses(module: VideoDiffusionModule, batch: LatentBatch) -> dict[str, Tensor]:
    """Losses (B, num_strata) at each clip's own noise and sigmas, of every part that is still trained, by name.

    A sum over parts would hide one's turn behind another that learns longer.

    Args:
        module: what is trained.
        batch: B clips of one resolution.
    """
    streams = [stream.name for stream in module.family.streams]
    scored: dict[str, dict[str, Tensor]] = {}
    losses = {}
    # The expert that is on the device goes first: with offloading the other one has to come.
    for part in sorted(module.parts.scored, key=lambda part: part.expert != module.experts.asked):
        if part.expert not in scored:  # the streams of a transformer are scored together
            noising = module.noising.between(*part.sigmas)
            options = module.seed, module.num_strata, module.conditions, streams
            scored[part.expert] = paired_losses(as_expert(module, part.expert), noising, batch, *options)
        losses[part.name] = scored[part.expert][part.stream]
    return losses
