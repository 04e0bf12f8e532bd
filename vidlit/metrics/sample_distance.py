"""How near samples are to clips, and how alike they are: the numbers that audits are judged by.

Samples of the same prompts and noise are drawn again and again, so each is compared with what it was at step 0, as each
clip's loss is. What is near is measured on pixels averaged over blocks: of the measures tried on runs that copy
(docs/science.md) it told copies from the rest best. What is alike is measured on latents, which need no decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Height and width, in pixels, of the blocks that are averaged: a copy is a little blurred, or a pixel off."""


def coarse(videos: Tensor) -> Tensor:
    """Videos (B, 3, F, H, W) in about [-1, 1] as means of blocks: (B, 3, F, H / 8, W / 8) float32."""
    block = (1, min(BLOCK, videos.shape[3]), min(BLOCK, videos.shape[4]))
    return F.avg_pool3d(videos.float(), block)


def distance(left: Tensor, right: Tensor) -> Tensor:
    """Root mean square difference (B,) of videos (B, ...) of one size.

    Example:
        >>> distance(torch.zeros(1, 3, 2, 4, 4), torch.full((1, 3, 2, 4, 4), 0.5)).tolist()
        [0.5]
    """
    return (left.float() - right.float()).flatten(1).square().mean(1).sqrt()


def nearest_others(clips: Sequence[Tensor], groups: Sequence[str]) -> Tensor:
    """Distance from each clip to the nearest one of another recording.

    Args:
        clips: n coarse videos (3, F, h, w); those of another size are resampled to the one they are compared with.
        groups: (n,) recording of each.

    Returns:
        (n,) float32; infinite where there is no other recording.
    """
    nearest = torch.full((len(clips),), torch.inf)
    for row, clip in enumerate(clips):
        for other, group in zip(clips, groups, strict=True):
            if group == groups[row]:
                continue
            alike = (
                other if other.shape == clip.shape else F.interpolate(other[None], clip.shape[1:], mode="trilinear")[0]
            )
            nearest[row] = min(float(nearest[row]), float(distance(clip[None], alike[None])))
    return nearest


def alikeness(latents: Sequence[Tensor], means: Sequence[Tensor], groups: Sequence[str]) -> float:
    """Mean cosine between videos of different recordings, less what all videos of their size have in common.

    1 where all are the same, about 0 where they are as different as the mean allows.

    Args:
        latents: n videos (C, F, H, W); only pairs of one size are compared.
        means: (C, F, H, W) for each, the mean of clips of its size.
        groups: (n,) recording of each.

    Returns:
        NaN where no pair can be compared.
    """
    centred = [F.normalize((video - mean).float().flatten(), dim=0) for video, mean in zip(latents, means, strict=True)]
    cosines = [
        float(centred[i] @ centred[j])
        for i, j in combinations(range(len(centred)), 2)
        if groups[i] != groups[j] and latents[i].shape == latents[j].shape
    ]
    return sum(cosines) / len(cosines) if cosines else float("nan")
