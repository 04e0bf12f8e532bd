"""LTX-Video (https://arxiv.org/abs/2501.00103): packed latents, T5 prompts with a mask, rotary scale by frame rate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidlit.diffusion.rectified_flow import RectifiedFlow, ResolutionShift
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, T5PromptEncoder
from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 128


class LTXVideo(Family):
    """Lightricks' LTX-Video, whose VAE also has patches of its own: the transformer takes one latent a token."""

    transformer_class: ClassVar[str] = "LTXVideoTransformer3DModel"
    lora_targets: ClassVar[str] = r"transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
    # ComfyUI calls the blocks' layers as diffusers does.
    comfyui_layers: ClassVar[Layers] = {
        layer: (layer,)
        for layer in (
            *(f"transformer_blocks.{{}}.attn1.to_{part}" for part in ("q", "k", "v", "out.0")),
            *(f"transformer_blocks.{{}}.attn2.to_{part}" for part in ("q", "k", "v", "out.0")),
            *(f"transformer_blocks.{{}}.ff.net.{part}" for part in ("0.proj", "2")),
        )
    }
    default_fps = 25.0
    pipeline_class = "LTXPipeline"
    takes_first_frame = True
    prompt_recipe = f"T5, padded to {MAX_PROMPT_TOKENS} without a mask"

    def velocity(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """See :meth:`Family.velocity`. The pipeline's ``_pack_latents`` at patch size 1 is a transpose."""
        num_frames, height, width = noisy.shape[2:]
        temporal, spatial = self.compression
        dtype = next(transformer.parameters()).dtype
        tokens = transformer(
            hidden_states=noisy.flatten(2).transpose(1, 2).to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            timestep=1000.0 * (sigmas.repeat_interleave(height * width, dim=1) if sigmas.dim() == 2 else sigmas),
            encoder_attention_mask=conditioning.prompt_attention_mask.to(dtype),
            num_frames=num_frames,
            height=height,
            width=width,
            rope_interpolation_scale=(temporal / self.fps, spatial, spatial),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(noisy.shape)

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler with the resolution shift of ``LTXPipeline`` where the base's config asks for it."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = load_part(FlowMatchEulerDiscreteScheduler, self.base, "scheduler")
        config = scheduler.config
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (num_tokens - config.base_image_seq_len)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler

    def noising(self) -> RectifiedFlow:
        """Logit-normal, shifted by resolution along the line that the base's scheduler states, if it does."""
        config = read_config(self.base, "scheduler", "scheduler_config.json")
        if not config.get("use_dynamic_shifting", False):
            return RectifiedFlow(shift=float(config.get("shift", 1.0)))
        keys = ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
        return RectifiedFlow(shift=ResolutionShift(*(config[key] for key in keys)))

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Family.statistics`; measured, and kept with the weights."""
        return vae.latents_mean.float(), vae.latents_std.float() / vae.config.scaling_factor

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """See :meth:`Family.decode_latents`. VAEs with a timestep decode at 0, the pipeline's default."""
        raw = self.denormalise(vae, latents)
        conditioned = vae.config.timestep_conditioning
        timestep = raw.new_zeros(raw.shape[0]) if conditioned else None
        return vae.decode(raw, timestep, return_dict=False)[0].float()

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """T5, which LTXPipeline gives no mask: padding changes the caption's tokens."""
        return T5PromptEncoder(self, device, MAX_PROMPT_TOKENS, attend_padding=True)
