"""Memory beside the training steps: encoding before them, decoding in audits."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from vidlit.forecast.step_memory import CannotRunError, without_values
from vidlit.forecast.tensor_memory import ACTIVATIONS, Held, TensorMemory, highest
from vidlit.models.encoders import use_tiles
from vidlit.models.without_weights import count_text_weights, without_weights

if TYPE_CHECKING:
    from vidlit.models.family import Family
    from vidlit.video.buckets import Bucket

VAE, TEXT_ENCODER = "VAE", "text encoder"
"""Kinds of memory that training does not have."""
_TEXT_BYTES = 2
"""Of a weight of a text encoder on a GPU."""
_TEXT_ACTIVATIONS = 0.02
"""What the captions' own tensors add to a text encoder's weights: a few hundred tokens in one layer at a time."""


@lru_cache(maxsize=64)
def encode_clips(family: Family, bucket: Bucket, tiled: bool = False) -> Held:
    """Memory while a clip is encoded by the VAE, whole or in tiles.

    Raises:
        CannotRunError: the VAE cannot be run without values.
    """

    def encode(vae: nn.Module) -> Any:
        pixels = torch.zeros(1, *bucket, 3, dtype=torch.uint8)
        video = pixels.permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
        return family.encode_video(vae, video)

    return _with_vae(family, encode, tiled)


@lru_cache(maxsize=64)
def decode_clips(family: Family, bucket: Bucket, tiled: bool = False) -> Held:
    """Memory while a clip is decoded by the VAE, whole or in tiles; what training holds beside it is not counted.

    Raises:
        CannotRunError: the VAE cannot be run without values.
    """
    shape = (1, *family.latent_shape(*bucket))
    return _with_vae(family, lambda vae: family.decode_latents(vae, torch.zeros(shape)), tiled)


@lru_cache(maxsize=64)
def encode_captions(family: Family) -> Held:
    """Memory while captions are encoded: nearly all of it are weights.

    Raises:
        UserError: a text encoder's config names no class that is known.
    """
    weights = _TEXT_BYTES * count_text_weights(family.base, family.text_parts)
    return Held({TEXT_ENCODER: float(weights), ACTIVATIONS: _TEXT_ACTIVATIONS * weights})


@torch.no_grad()
def _with_vae(family: Family, use: Callable[[nn.Module], Any], tiled: bool) -> Held:
    memory = TensorMemory()
    with without_values(memory), without_weights():
        try:
            vae = family.load_vae("cuda")
            if tiled:
                use_tiles(vae)
            memory.name([*vae.parameters(), *vae.buffers()], VAE)
            memory.enter("use", ACTIVATIONS)
            use(vae)
        except Exception as error:  # as for steps
            raise CannotRunError(" ".join(str(error).split())[:300] or type(error).__name__) from error
    return highest([memory.peaks.get("use", Held())])
