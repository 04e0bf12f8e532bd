"""LTX-Video (https://arxiv.org/abs/2501.00103): packed latents, T5 prompts with a mask, rotary scale by frame rate."""

from __future__ import annotations

from pathlib import Path
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

MAX_PROMPT_TOKENS, LONG_PROMPT_TOKENS = 128, 256
"""Of ``LTXPipeline`` and ``LTXConditionPipeline``."""
OFFICIAL_SHIFT = ResolutionShift(base_shift=0.95, max_shift=2.05, base_tokens=1024, max_tokens=4096)
"""Of training sigmas in Lightricks' trainer, for every version; from 0.9.5 on, the base's scheduler states none."""


class LTXVideo(Family):
    """Lightricks' LTX-Video, whose VAE also has patches of its own: the transformer takes one latent a token.

    Versions from 0.9.5 on are those of ``LTXConditionPipeline``: they read longer prompts, are sampled on another
    schedule, and count time by the video frames of a latent, of which the first has one alone. Their folders name that
    pipeline (0.9.7), or have the VAE that came with it (0.9.5, whose folder names ``LTXPipeline``).
    """

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
    takes_clean_frames = True
    prompt_recipe = f"T5, padded to {MAX_PROMPT_TOKENS} without a mask"

    def __init__(self, base: Path, fps: float | None = None) -> None:
        super().__init__(base, fps)
        index = read_config(base, "", "model_index.json") if (base / "model_index.json").is_file() else {}
        blocks = read_config(base, "vae").get("down_block_types") or ()
        named = index.get("_class_name") == "LTXConditionPipeline"
        self.is_from_095_on = named or "LTXVideo095DownBlock3D" in blocks
        if self.is_from_095_on:
            self.pipeline_class = "LTXConditionPipeline"
            self.prompt_recipe = f"T5, padded to {LONG_PROMPT_TOKENS} with a mask"

    def velocity(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
    ) -> Tensor | dict[str, Tensor]:
        """See :meth:`Family.velocity`."""
        num_frames, height, width = noisy.shape[2:]
        dtype = next(transformer.parameters()).dtype
        tokens, levels = to_tokens(noisy, sigmas)
        predicted = transformer(
            hidden_states=tokens.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            timestep=1000.0 * levels,
            encoder_attention_mask=conditioning.mask_for(noisy.device, dtype),
            num_frames=num_frames,
            height=height,
            width=width,
            **self._positions(noisy),
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).reshape(noisy.shape)

    def _positions(self, noisy: Tensor) -> dict[str, Any]:
        """Where the transformer is told that the tokens of latents (B, C, F, H, W) are, in seconds and pixels."""
        temporal, spatial = self.compression
        if not self.is_from_095_on:
            return {"rope_interpolation_scale": (temporal / self.fps, spatial, spatial)}
        num_frames, height, width = (torch.arange(size, device=noisy.device) for size in noisy.shape[2:])
        # The first latent frame is one video frame, all others are `temporal`.
        starts = (num_frames * temporal + 1 - temporal).clamp(min=0)
        axes = torch.meshgrid(starts / self.fps, height * float(spatial), width * float(spatial), indexing="ij")
        return {"video_coords": torch.stack(axes).flatten(1).expand(len(noisy), -1, -1)}

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler on the schedule of ``LTXConditionPipeline``, or on that of ``LTXPipeline``.

        The latter is shifted by resolution where the base's config asks for it.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler
        from diffusers.pipelines.ltx.pipeline_ltx_condition import linear_quadratic_schedule

        scheduler = load_part(FlowMatchEulerDiscreteScheduler, self.base, "scheduler")
        config = scheduler.config
        if self.is_from_095_on:
            scheduler = FlowMatchEulerDiscreteScheduler.from_config(config, use_dynamic_shifting=False)
            scheduler.set_timesteps(sigmas=linear_quadratic_schedule(num_steps))
            return scheduler
        slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
        mu = config.base_shift + slope * (num_tokens - config.base_image_seq_len)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / num_steps, num_steps), mu=mu)
        return scheduler

    def noising(self) -> RectifiedFlow:
        """Logit-normal, shifted by resolution: along the line that the base's scheduler states, or the official one."""
        if self.is_from_095_on:
            return RectifiedFlow(shift=OFFICIAL_SHIFT)
        config = read_config(self.base, "scheduler", "scheduler_config.json")
        if not config.get("use_dynamic_shifting", False):
            return super().noising()
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
        """T5, which ``LTXPipeline`` gives no mask, so that padding changes the caption's tokens; the other one does."""
        if self.is_from_095_on:
            return T5PromptEncoder(self, device, LONG_PROMPT_TOKENS, attend_padding=False)
        return T5PromptEncoder(self, device, MAX_PROMPT_TOKENS, attend_padding=True)


def to_tokens(noisy: Tensor, sigmas: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Latents as tokens, as the pipelines' ``_pack_latents`` makes them at patch size 1, and their noise levels.

    Args:
        noisy: (B, C, F, H, W).
        sigmas: (B,), or (B, F) where frames differ.
        reference: (B, C, F', H', W'), whose tokens come after the others, without noise.

    Returns:
        (B, N, C) tokens, and (B, N) levels; (B,) where all of a sample are alike.
    """
    tokens = noisy.flatten(2).transpose(1, 2)
    levels = sigmas.repeat_interleave(noisy.shape[3] * noisy.shape[4], dim=1) if sigmas.dim() == 2 else sigmas
    if reference is None:
        return tokens, levels
    given = reference.to(noisy.dtype).flatten(2).transpose(1, 2)
    levels = levels if levels.dim() == 2 else levels[:, None].expand(-1, tokens.shape[1])
    return torch.cat([tokens, given], dim=1), torch.cat([levels, levels.new_zeros(given.shape[:2])], dim=1)
