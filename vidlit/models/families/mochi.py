"""Mochi 1 (https://huggingface.co/genmo/mochi-1-preview): time runs backwards, and its output points to the clip."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.models.base_folder import read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, T5PromptEncoder
from vidlit.models.families.unmasked_attention import MochiJointAttention, UnmaskedAttention, every_token

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 256
THRESHOLD_NOISE = 0.025
"""How far from pure noise the first half of the sampling steps goes, in even steps; the pipeline's constant."""


class Mochi(UnmaskedAttention):
    """Genmo's Mochi 1, which was trained with the time ``1 - sigma`` and the velocity ``latents - noise``."""

    transformer_class: ClassVar[str] = "MochiTransformer3DModel"
    default_fps = 30.0
    # Anchored at the blocks: time_embed.pooler has layers of the same names.
    lora_targets: ClassVar[str] = r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
    comfyui_layers: ClassVar[Layers] = {
        "blocks.{}.attn.qkv_x": tuple(f"transformer_blocks.{{}}.attn1.to_{part}" for part in "qkv"),
        "blocks.{}.attn.proj_x": ("transformer_blocks.{}.attn1.to_out.0",),
        "blocks.{}.attn.qkv_y": tuple(f"transformer_blocks.{{}}.attn1.add_{part}_proj" for part in "qkv"),
        "blocks.{}.attn.proj_y": ("transformer_blocks.{}.attn1.to_add_out",),
        "blocks.{}.mlp_x.w2": ("transformer_blocks.{}.ff.net.2",),
        "blocks.{}.mlp_y.w2": ("transformer_blocks.{}.ff_context.net.2",),
    }
    pipeline_class = "MochiPipeline"
    prompt_recipe = f"T5, padded to {MAX_PROMPT_TOKENS} with a mask"
    processors: ClassVar = {"MochiAttnProcessor2_0": MochiJointAttention}

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`."""
        dtype = next(transformer.parameters()).dtype
        towards_the_clip = transformer(
            hidden_states=noisy.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            timestep=1000.0 * (1 - sigmas),
            encoder_attention_mask=every_token(conditioning, noisy.device, torch.bool),
            return_dict=False,
        )[0]
        return -towards_the_clip

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler over the pipeline's own sigmas: half of the steps even, the others ever wider."""
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule

        config = read_config(self.base, "scheduler", "scheduler_config.json")
        # The base's config turns sigmas into times; velocity() does that here.
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, invert_sigmas=False)
        scheduler.set_timesteps(sigmas=np.array(linear_quadratic_schedule(num_steps, THRESHOLD_NOISE)))
        return scheduler

    def noising(self) -> RectifiedFlow:
        """Uniform, as Genmo's trainer draws it."""
        return RectifiedFlow(distribution="uniform")

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Family.statistics`."""
        config = vae.config
        stated = config.latents_mean is not None and config.latents_std is not None
        mean, std = (config.latents_mean, config.latents_std) if stated else (0.0, 1.0)
        return torch.tensor(mean), torch.tensor(std) / config.scaling_factor

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """See :meth:`Family.decode_latents`. Large videos in blended tiles: whole, their decoder takes tens of GB."""
        vae.enable_tiling()
        try:
            return super().decode_latents(vae, latents)
        finally:
            vae.disable_tiling()

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """T5 with up to 256 tokens."""
        index = self.base / "model_index.json"
        zeros = index.is_file() and json.loads(index.read_text()).get("force_zeros_for_empty_prompt", False)
        return MochiPromptEncoder(self, device, MAX_PROMPT_TOKENS, attend_padding=False, drop_empty=zeros)


class MochiPromptEncoder(T5PromptEncoder):
    """T5, for which some bases ask that the empty caption be no token at all.

    Args:
        drop_empty: the base asks so.
        *args: of :class:`T5PromptEncoder`.
        **kwargs: of :class:`T5PromptEncoder`.
    """

    def __init__(self, *args: Any, drop_empty: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drop_empty = drop_empty

    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) of each caption; L is 0 for the empty one where it is dropped."""
        encoded = super().__call__(captions)
        for caption, made in zip(captions, encoded, strict=True):
            if self.drop_empty and not caption:
                made["prompt_embeds"] = made["prompt_embeds"][:0]
        return encoded
