"""Shapes of what a transformer reads of one clip and its caption, before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.errors import UserError
from vidlit.models.base_folder import read_config

if TYPE_CHECKING:
    from vidlit.models.family import Family
    from vidlit.video.buckets import Bucket

_PROMPT_WIDTHS = ("caption_channels", "text_dim", "text_embed_dim", "in_text_dim", "cross_attention_dim")
"""Keys of a transformer's config that say how wide an embedding of the prompt is that it is given."""
_PROMPT_TOKENS = {
    "LTX2VideoTransformer3DModel": 1024,
    "LTXVideoTransformer3DModel": 128,
    "HunyuanVideo15Transformer3DModel": 256,
}
"""Tokens of a caption's embedding: of LTX-2 always as many; of HunyuanVideo 1.5, which reads up to 1,000, those of a
long caption."""
_USUAL_TOKENS = 256
"""The same of other families that do not pad: the most that they read (HunyuanVideo, Mochi), or a long caption."""
_CLIP_TOKENS, _SIGLIP_TOKENS, _GLYPH_TOKENS = 257, 729, 256
"""Tokens of a picture, of CLIP ViT-H/14 at 224 pixels and of SigLIP at 378; of quoted text, of ByT5."""


def prompt_shape(family: Family) -> tuple[int, int]:
    """Tokens and width of the embedding of a long caption.

    Raises:
        UserError: the family's transformer does not say how wide it is.
    """
    config = read_config(family.base, "transformer")
    keys: tuple[str, ...] = _PROMPT_WIDTHS
    if family.transformer_class.startswith("LTX2") and not config.get("use_prompt_embeddings", True):
        keys = ("cross_attention_dim",)
    width = next((int(config[key]) for key in keys if config.get(key)), 0)
    if not width:
        raise UserError(f"{family.base}/transformer/config.json does not say how wide its prompts are.")
    tokens = family.prompt_length or _PROMPT_TOKENS.get(family.transformer_class, _USUAL_TOKENS)
    return tokens, width


def extra_shapes(family: Family, bucket: Bucket) -> dict[str, tuple[int, ...]]:
    """Shapes (without the batch) of a family's prompt extras and clip extras, by name.

    Raises:
        UserError: it has one whose shape is not known here.
    """
    config: dict[str, Any] = read_config(family.base, "transformer")
    projects = config.get("use_prompt_embeddings", True)  # of LTX-2: in the transformer, not before
    latents = family.latent_shape(*bucket)
    streams = family.stream_shapes(*bucket)
    first_frame_alone = family.transformer_class.startswith(("CogVideoX", "HunyuanVideo15"))
    image = (latents[0], 1, *latents[2:]) if first_frame_alone else latents
    known: dict[str, Callable[[], tuple[int, ...]]] = {
        "pooled_projections": lambda: (int(config.get("pooled_projection_dim") or config["in_text_dim2"]),),
        "glyph_embeds": lambda: (_GLYPH_TOKENS, int(config["text_embed_2_dim"])),
        "audio_prompt_embeds": lambda: (
            prompt_shape(family)[0],
            int(config["caption_channels" if projects else "audio_cross_attention_dim"]),
        ),
        "has_sound": lambda: (1,),
        "image_latents": lambda: image,
        "noised_image_latents": lambda: image,
        "image_embeds": lambda: (
            (_CLIP_TOKENS, int(config["image_dim"]))
            if config.get("image_dim")
            else (_SIGLIP_TOKENS, int(config["image_embed_dim"]))
        ),
    }
    for name, shape in streams.items():
        known.setdefault(name, partial(tuple, shape))
    wanted = (*family.prompt_extras, *family.clip_extras)
    if unknown := [name for name in wanted if name not in known]:
        raise UserError(f"the shape of {', '.join(unknown)} of {type(family).__name__} is not known before encoding.")
    return {name: known[name]() for name in wanted}


def sample_batch(family: Family, bucket: Bucket, batch_size: int, *, with_std: bool = False) -> LatentBatch:
    """A batch with the shapes of real ones, on the current device and in the current mode.

    Captions are as long as they come, so that no mask is needed, and what may be left empty beside them is full.

    Args:
        family: of the base.
        bucket: of its clips.
        batch_size: their number.
        with_std: latents are drawn anew at each visit.
    """
    length, width = prompt_shape(family)
    shapes = extra_shapes(family, bucket)
    if with_std:
        shapes["latents_std"] = family.latent_shape(*bucket)
    extras = {name: torch.ones(batch_size, *shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
    conditioning = Conditioning(torch.ones(batch_size, length, width, dtype=torch.bfloat16), None, extras)
    latents = torch.zeros(batch_size, *family.latent_shape(*bucket), dtype=torch.bfloat16)
    rows = torch.zeros(batch_size, dtype=torch.int64)
    return LatentBatch(latents, conditioning, rows, rows)
