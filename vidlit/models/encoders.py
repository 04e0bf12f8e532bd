"""What fills a latent store: clips to latents, captions to prompt embeddings, as a family's pipeline makes them."""

from __future__ import annotations

import hashlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import torch
from torch import Tensor

from vidlit.diffusion.loss_weights import latent_mask
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.device_memory import free_memory

if TYPE_CHECKING:
    from vidlit.models.family import Family


class VideoEncoder:
    """Videos to latents by the base's VAE. Families that store more of a clip derive from it.

    Args:
        family: of the base.
        device: to encode on.
        with_std: give the standard deviation of the VAE's posterior, too.
    """

    def __init__(self, family: Family, device: torch.device | str, with_std: bool = False) -> None:
        self.family = family
        self.vae = family.load_vae(device)
        self.with_std = with_std

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        """Videos (B, 3, F, H, W) in [-1, 1] to ``latents`` (B, C, F, H, W) and the family's ``clip_extras``.

        ``latents`` is the mode of the VAE's posterior. Its standard deviation, normalised as the latents are, is
        ``latents_std`` (B, C, F, H, W).
        """
        posterior = self.family.posterior(self.vae, video)
        encoded = {"latents": self.family.normalise(self.vae, posterior.mode())}
        if self.with_std:
            encoded["latents_std"] = self.family.normalise_std(self.vae, posterior.std)
        return encoded

    def encode_sound(self, sound: Tensor, num_frames: int) -> dict[str, Tensor]:
        """Clip extras of the sound that goes with videos; families with a ``sample_rate`` make some.

        Args:
            sound: (B, 2, n) float32 in about [-1, 1] of the videos' spans, zero where one is silent.
            num_frames: of the videos, before they are encoded.
        """
        raise NotImplementedError(f"{type(self.family).__name__} says a sample_rate, but encodes no sound")


def use_tiles(vae: Any) -> None:
    """Have a VAE work piece by piece on what is larger than its tiles, whose size diffusers ships, and blend them.

    A VAE without tiles, as the demo's, has no use for them.
    """
    if hasattr(vae, "enable_tiling"):
        vae.enable_tiling()


class ReadTokens(NamedTuple):
    """How much of a caption a text encoder reads."""

    num_cut: int
    """Tokens beyond its limit."""
    kept: str
    """Names the tokens that it reads: captions that are the same once cut have the same."""


class PromptEncoder(ABC):
    """Captions to what the transformer reads."""

    @abstractmethod
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption ``prompt_embeds`` (L, D) and the family's ``prompt_extras``, float32 on the CPU.

        L counts what the transformer reads: all of a prompt's fixed length where padding is part of it, the caption's
        tokens where it is masked or zeroed.
        """

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """How much of each caption is read; all of it, where a family does not say otherwise."""
        return [ReadTokens(0, "") for _ in captions]


def count_tokens(tokenizer: Any, texts: list[str], max_tokens: int) -> list[ReadTokens]:
    """How much of each text is left once it is cut at a number of tokens.

    Args:
        tokenizer: of transformers.
        texts: as they are given to it.
        max_tokens: that it keeps, with those that it adds.
    """
    whole = tokenizer(texts, verbose=False).input_ids
    kept = tokenizer(texts, truncation=True, max_length=max_tokens).input_ids
    return [
        ReadTokens(len(all_ids) - len(ids), hashlib.blake2b(repr(ids).encode(), digest_size=16).hexdigest())
        for all_ids, ids in zip(whole, kept, strict=True)
    ]


class T5PromptEncoder(PromptEncoder):
    """A base's ``tokenizer`` and T5 or UMT5 ``text_encoder``.

    Args:
        family: of the base.
        device: to encode on.
        max_tokens: captions are padded to this length and longer ones cut, as the family's pipeline does.
        attend_padding: let the caption's tokens attend to its padding: the pipeline gives the encoder no mask.
        keep_padding: the transformer reads the padding's embeddings, too.
        clean: what the pipeline does to a caption before it is tokenised.
    """

    def __init__(
        self,
        family: Family,
        device: torch.device | str,
        max_tokens: int,
        *,
        attend_padding: bool,
        keep_padding: bool = False,
        clean: Callable[[str], str] = str,
    ) -> None:
        import transformers
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        multilingual = read_config(family.base, "text_encoder").get("model_type") == "umt5"
        encoder_class = transformers.UMT5EncoderModel if multilingual else transformers.T5EncoderModel
        self.tokenizer = load_part(transformers.AutoTokenizer, family.base, "tokenizer")
        encoder = load_part(encoder_class, family.base, "text_encoder", dtype=dtype)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.max_tokens = max_tokens
        self.attend_padding = attend_padding
        self.keep_padding = keep_padding
        self.clean = clean

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) of each caption."""
        # Padded to full length, as pipelines do it: what is trained on must be what users will generate with.
        tokens = self.tokenizer(
            [self.clean(caption) for caption in captions],
            padding="max_length",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        ).to(self.encoder.device)
        mask = None if self.attend_padding else tokens.attention_mask
        hidden = self.encoder(tokens.input_ids, mask).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        if self.keep_padding:
            lengths = [self.max_tokens] * len(captions)
        return [{"prompt_embeds": row[:length].float().cpu()} for row, length in zip(hidden, lengths, strict=True)]

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """See :meth:`PromptEncoder.read_tokens`."""
        return count_tokens(self.tokenizer, [self.clean(caption) for caption in captions], self.max_tokens)


class BaseEncoders:
    """VAE and text encoder of a base, each loaded when first needed, and let go when the other one is.

    Args:
        family: of the base.
        with_std: give the standard deviation of the VAE's posterior, too; see :class:`VideoEncoder`.
        tiled: encode in tiles.
    """

    def __init__(self, family: Family, with_std: bool = False, tiled: bool = False) -> None:
        self.family = family
        self.with_std, self.tiled = with_std, tiled
        self.device = torch.device("cpu")
        self.identity: Mapping[str, str] = family.identity

    def to(self, device: torch.device) -> Self:
        """Where to load and run what is not loaded yet."""
        self.device = device
        return self

    @cached_property
    def _video_encoder(self) -> VideoEncoder:
        self._let_go("_prompt_encoder")
        encoder = self.family.load_video_encoder(self.device, self.with_std)
        if self.tiled:
            use_tiles(encoder.vae)
        return encoder

    @cached_property
    def _prompt_encoder(self) -> PromptEncoder:
        self._let_go("_video_encoder")
        return self.family.load_prompt_encoder(self.device)

    def _let_go(self, name: str) -> None:
        if self.__dict__.pop(name, None) is not None:
            free_memory(self.device)

    @torch.no_grad()
    def encode_video(self, frames: Tensor, sound: Tensor | None = None) -> dict[str, Tensor]:
        """Frames (B, F, H, W, 3) uint8 to ``latents`` (B, C, F, H, W) and clip extras, float32 on the CPU.

        Args:
            frames: to encode.
            sound: (B, 2, n) float32 of the same spans, for families with a ``sample_rate``.
        """
        # Bytes travel to the device, a quarter of what floats would be.
        video = frames.to(self.device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
        encoded = self._video_encoder(video)
        if sound is not None:
            encoded |= self._video_encoder.encode_sound(sound.to(self.device), frames.shape[1])
        return {name: tensor.float().cpu() for name, tensor in encoded.items()}

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Masks (B, F, H, W) uint8 of clips to (B, 1, f, h, w) in [0, 1], of the shape of their latents."""
        _, *shape = self.family.latent_shape(*masks.shape[1:])
        return latent_mask(masks.float() / 255, (shape[0], shape[1], shape[2]), self.family.compression[0])

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption its named tensors, float32 on the CPU."""
        return self._prompt_encoder(captions)

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """How much of each caption the text encoder reads."""
        return self._prompt_encoder.read_tokens(captions)
