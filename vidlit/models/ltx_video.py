"""LTX-Video (https://arxiv.org/abs/2501.00103): packed latents, T5 prompts with a mask, rotary scale by frame rate."""

from __future__ import annotations

import sys
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidlit.models.family import Family, PromptEncoder

MAX_PROMPT_TOKENS = 128


class LTXVideo(Family):
    """Lightricks' LTX-Video, whose VAE also has patches of its own: the transformer takes one latent a token."""

    transformer_class: ClassVar[str] = "LTXVideoTransformer3DModel"
    pipeline_class: ClassVar[str] = "LTXPipeline"
    default_fps: ClassVar[float] = 25.0
    prompt_length: ClassVar[int | None] = None
    prompt_recipe: ClassVar[str] = f"T5, padded to {MAX_PROMPT_TOKENS} without a mask"
    lora_targets: ClassVar[str] = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"

    def velocity(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        sigmas: Tensor,
        prompt_embeds: Tensor,
        prompt_mask: Tensor,
    ) -> Tensor:
        """See :meth:`Family.velocity`. The pipeline's ``_pack_latents`` at patch size 1 is a transpose."""
        num_frames, height, width = noisy.shape[2:]
        temporal, spatial = self.compression
        dtype = next(transformer.parameters()).dtype
        tokens = transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=prompt_embeds.to(dtype),
            timestep=1000.0 * sigmas,
            encoder_attention_mask=prompt_mask.to(dtype),
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=(temporal / self.fps, spatial, spatial),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(noisy.shape)  # type: ignore[no-any-return]

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Any:
        """Flow-matching Euler with the resolution shift of ``LTXPipeline`` where the base's config asks for it."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(self.base, subfolder="scheduler")
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (num_tokens - config.base_image_seq_len)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler

    def encode_video(self, vae: Any, video: Tensor) -> Tensor:
        """See :meth:`Family.encode_video`."""
        latents = vae.encode(video.to(next(vae.parameters()).dtype)).latent_dist.mode().float()
        mean, std = self._statistics(vae, latents.device)
        return (latents - mean) * vae.config.scaling_factor / std  # type: ignore[no-any-return]

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """See :meth:`Family.decode_latents`. VAEs with a timestep decode at 0, the pipeline's default."""
        mean, std = self._statistics(vae, latents.device)
        raw = (latents * std / vae.config.scaling_factor + mean).to(next(vae.parameters()).dtype)
        conditioned = vae.config.timestep_conditioning
        timestep = raw.new_zeros(raw.shape[0]) if conditioned else None
        return vae.decode(raw, timestep, return_dict=False)[0].float()  # type: ignore[no-any-return]

    def _statistics(self, vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.as_tensor(value, device=device).float() for value in (vae.latents_mean, vae.latents_std))
        return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """T5 with up to 128 tokens."""
        return T5PromptEncoder(self, device, MAX_PROMPT_TOKENS)


class T5PromptEncoder(PromptEncoder):
    """A base's ``tokenizer`` and T5 ``text_encoder``.

    Args:
        family: of the base.
        device: to encode on.
        max_tokens: longer captions are cut here, as the family's pipeline does.
    """

    def __init__(self, family: Family, device: torch.device | str, max_tokens: int) -> None:
        from transformers import AutoTokenizer, T5EncoderModel
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        self.tokenizer = AutoTokenizer.from_pretrained(family.base / "tokenizer")
        encoder = T5EncoderModel.from_pretrained(family.base / "text_encoder", dtype=dtype)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        self.max_tokens = max_tokens

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) of each caption."""
        # Padded to full length and without a mask, as LTXPipeline does it: T5 lets padding change the caption's tokens,
        # and what is trained on must be what users will generate with.
        tokens = self.tokenizer(
            captions, padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.encoder.device)
        hidden = self.encoder(tokens.input_ids).last_hidden_state
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [{"prompt_embeds": row[:length].float().cpu()} for row, length in zip(hidden, lengths, strict=True)]
