"""Some samples learn without their caption, so that guidance, which compares with and without, goes on working."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from vidlit.diffusion.batch import Conditioning, mask_of
from vidlit.diffusion.noising import keyed_generator


def draw_dropped(probability: float, seed: int, position: int, rows: Sequence[int]) -> Tensor:
    """Which rows of a global batch lose their caption: a function of (seed, position, row), whatever rank holds it.

    Args:
        probability: of each.
        seed: of the run.
        position: of the batch in the run.
        rows: of the global batch.

    Returns:
        (len(rows),) bool on the CPU.
    """
    draws = torch.rand(rows[-1] + 1, generator=keyed_generator("caption", seed, position))
    return draws[list(rows)] < probability


def drop_captions(conditioning: Conditioning, empty: Conditioning, dropped: Tensor) -> Conditioning:
    """Replace captions by the empty one.

    Args:
        conditioning: of B samples.
        empty: the empty prompt, of one sample; what it does not hold (a clip's own tensors) stays.
        dropped: (B,) bool on the CPU.

    Returns:
        Of B samples; longer where the empty prompt is.
    """
    length = max(conditioning.prompt_embeds.shape[1], empty.prompt_embeds.shape[1])
    embeds, empty_embeds = (
        pad(part.prompt_embeds, (0, 0, 0, length - part.prompt_embeds.shape[1])) for part in (conditioning, empty)
    )
    lengths = torch.tensor(conditioning.prompt_lengths).where(~dropped, empty.prompt_lengths[0])
    there = dropped.to(embeds.device, non_blocking=True)
    extras = {
        name: _where(there, empty.extras[name], value) if name in empty.extras else value
        for name, value in conditioning.extras.items()
    }
    mask = mask_of(torch.arange(length) < lengths[:, None])
    return Conditioning(_where(there, empty_embeds, embeds), mask, extras)


def _where(dropped: Tensor, empty: Tensor, value: Tensor) -> Tensor:
    return torch.where(dropped.view(-1, *[1] * (value.dim() - 1)), empty.to(value.dtype), value)
