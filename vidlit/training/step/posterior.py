"""What is drawn anew at each visit of a clip: its latents, from what the VAE says of them, and its conditioning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from vidlit.diffusion.batch import LatentBatch
from vidlit.diffusion.noising import keyed_generator

if TYPE_CHECKING:
    from vidlit.models.family import Family


def draw_latents(family: Family, batch: LatentBatch, seed: int, position: int, rows: Sequence[int]) -> LatentBatch:
    """Replace the posterior's mode by a sample where its standard deviation came along.

    Args:
        family: of the base.
        batch: with ``latents_std`` among its extras, or as it is to stay.
        seed: of the run.
        position: of the batch in the run.
        rows: of each sample in the global batch; with the seed and the position they key what is drawn.
    """
    extras = dict(batch.conditioning.extras)
    std = extras.pop("latents_std", None)
    if std is None:
        return batch
    generators = [keyed_generator("latents", seed, position, row, device=std.device) for row in rows]
    noise = torch.stack([torch.randn(std.shape[1:], generator=each, device=std.device) for each in generators])
    drawn = family.draw_latents(batch.latents, std, noise)
    return batch._replace(latents=drawn, conditioning=batch.conditioning._replace(extras=extras))


def draw_conditioning(family: Family, batch: LatentBatch, seed: int, position: int, rows: Sequence[int]) -> LatentBatch:
    """Change what the transformer reads beside latents as the family's training does; arguments as above."""
    generators = [keyed_generator("conditioning", seed, position, row) for row in rows]
    return batch._replace(conditioning=family.augment_conditioning(batch.conditioning, generators))
