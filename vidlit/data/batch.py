"""What a training step receives: two streams, text embeddings and video latents, of one resolution."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LatentSample(NamedTuple):
    """One clip, encoded: what a dataset returns."""

    latents: Tensor
    """(C, F, H, W)"""
    prompt_embeds: Tensor
    """(L, D), without padding"""
    row: int
    """Row of the clip in its split's clip table."""
    key: int
    """:func:`clip_key` of the clip."""


class LatentBatch(NamedTuple):
    """Clips of one resolution. A NamedTuple, because Lightning moves and pins those and not dataclasses."""

    latents: Tensor
    """(B, C, F, H, W)"""
    prompt_embeds: Tensor
    """(B, L, D), zero where the mask is False"""
    prompt_attention_mask: Tensor
    """(B, L) bool"""
    indices: Tensor
    """(B,) int64, rows of the split's clip table"""
    keys: Tensor
    """(B,) int64, :func:`clip_key` of each clip: seeds the noise of paired validation"""


def clip_key(clip_id: str) -> int:
    """A 63-bit hash of a clip's name, the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode(), digest_size=8).digest(), "big") >> 1


def collate(samples: Sequence[LatentSample], prompt_length: int | None = None) -> LatentBatch:
    """Stack clips of one resolution and pad their prompts.

    Args:
        samples: clips whose latents have one shape.
        prompt_length: length to pad prompts to; ``None`` pads to the longest of the batch. Families whose
            transformer takes no mask were trained at one fixed length and need it.
    """
    length = prompt_length or max(sample.prompt_embeds.shape[0] for sample in samples)
    first = samples[0].prompt_embeds
    prompt_embeds = first.new_zeros(len(samples), length, first.shape[1])
    mask = torch.zeros(len(samples), length, dtype=torch.bool)
    for row, sample in enumerate(samples):
        used = min(sample.prompt_embeds.shape[0], length)
        prompt_embeds[row, :used] = sample.prompt_embeds[:used]
        mask[row, :used] = True
    return LatentBatch(
        latents=torch.stack([sample.latents for sample in samples]),
        prompt_embeds=prompt_embeds,
        prompt_attention_mask=mask,
        indices=torch.tensor([sample.row for sample in samples], dtype=torch.int64),
        keys=torch.tensor([sample.key for sample in samples], dtype=torch.int64),
    )
