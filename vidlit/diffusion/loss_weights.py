"""Masks: what each place of a clip's latents counts in the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def latent_mask(mask: Tensor, shape: tuple[int, int, int], temporal: int) -> Tensor:
    """A mask in pixels at the resolution of a video autoencoder's latents: the mean over what each position covers.

    The first latent frame stands for one frame, each other for as many as the autoencoder takes together. Latent frames
    beyond these are padding before the first, which they repeat.

    Args:
        mask: (B, F, H, W) in [0, 1], of the video's frames and pixels.
        shape: (f, h, w) of the latents.
        temporal: frames that one latent frame stands for.

    Returns:
        (B, 1, f, h, w) in [0, 1].
    """
    num_frames, height, width = shape
    small = F.adaptive_avg_pool2d(mask, (height, width))
    later = small[:, 1:].reshape(len(mask), -1, temporal, height, width).mean(2)
    pooled = torch.cat([small[:, :1], later], dim=1)
    padding = pooled[:, :1].expand(-1, num_frames - pooled.shape[1], -1, -1)
    return torch.cat([padding, pooled], dim=1)[:, None]


def loss_weights(mask: Tensor, unmasked_weight: float) -> Tensor:
    """What each place counts: 1 where the mask is white, ``unmasked_weight`` where it is black, greys in between."""
    return unmasked_weight + (1 - unmasked_weight) * mask.float()


def weighted_mean(errors: Tensor, weights: Tensor) -> Tensor:
    """The mean (B,) over places of each sample's errors (B, C, F, H, W), by weights (B, 1, F, H, W)."""
    by_place = errors.mean(1, keepdim=True)
    return (by_place * weights).flatten(1).sum(1) / weights.flatten(1).sum(1)
