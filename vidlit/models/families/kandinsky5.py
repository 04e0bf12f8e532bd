"""Kandinsky 5 (https://arxiv.org/abs/2511.14993), text-to-video: no mask of the prompt, positions by size in pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.encoders import PromptEncoder, ReadTokens, count_tokens
from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 512
"""Of the caption and what ends the template."""
SMALL = range(480, 855)
"""Pixels of both sides of a video whose positions are scaled by 2; by 3.16 in others, as the pipeline has it."""


class Kandinsky5(Family):
    """Kandinsky 5.0 T2V with dense attention: Lite, 5 seconds.

    Raises:
        UserError: a base that is not text-to-video, or whose attention is sparse.
    """

    transformer_class: ClassVar[str] = "Kandinsky5Transformer3DModel"
    lora_targets: ClassVar[str] = (
        r"visual_transformer_blocks\.\d+\.(self|cross)_attention\.(to_query|to_key|to_value|out_layer)"
    )
    default_fps = 24.0
    pipeline_class = "Kandinsky5T2VPipeline"
    needs_equal_prompts = True
    prompt_recipe = f"Qwen2.5-VL in the video template, {MAX_PROMPT_TOKENS} tokens after it; CLIP, pooled"
    prompt_extras = ("pooled_projections",)

    def __init__(self, base: Path, fps: float | None = None) -> None:
        super().__init__(base, fps)
        config, pipeline = read_config(base, "transformer"), read_config(base, "", "model_index.json")["_class_name"]
        if pipeline != self.pipeline_class:
            raise UserError(
                f"{base} is for {str(pipeline)[:100]}: of Kandinsky 5 only text-to-video ({self.pipeline_class}) is "
                "trained."
            )
        if (attention := config.get("attention_type", "regular")) != "regular":
            raise UserError(
                f"{base} has sparse attention (attention_type {attention!r}), which is not supported. Use a base with "
                "dense attention, such as kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers."
            )
        self.has_image_channels = bool(config.get("visual_cond"))

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`."""
        dtype: Any = transformer.dtype  # without the modules kept in float32
        hidden = noisy.movedim(1, -1)
        embedding: Any = getattr(transformer, "time_embeddings", None)
        if embedding is not None:  # a table that moves with no module: else it is copied, and waited for, at every call
            embedding.freqs = embedding.freqs.to(noisy.device)
        if self.has_image_channels:  # of an image's latents, and a mask: none is given
            given = hidden.new_zeros(*hidden.shape[:-1], hidden.shape[-1] + 1)
            hidden = torch.cat([hidden, given], dim=-1)
        num_frames, height, width = noisy.shape[2:]
        is_small = all(side * self.compression[1] in SMALL for side in (height, width))
        positions = (torch.arange(size, device=noisy.device) for size in (num_frames, height // 2, width // 2))
        predicted: Tensor = transformer(
            hidden_states=hidden.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            timestep=1000.0 * sigmas,
            pooled_projections=conditioning.extras["pooled_projections"].to(dtype),
            visual_rope_pos=list(positions),
            text_rope_pos=torch.arange(conditioning.prompt_embeds.shape[1], device=noisy.device),
            scale_factor=(1.0, 2.0, 2.0) if is_small else (1.0, 3.16, 3.16),
            return_dict=False,
        )
        return predicted.movedim(-1, 1)

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler with the shift that the base's config states."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = load_part(FlowMatchEulerDiscreteScheduler, self.base, "scheduler")
        scheduler.set_timesteps(num_steps)
        return scheduler

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """Qwen2.5-VL and CLIP."""
        return QwenAndCLIPPromptEncoder(self, device)


class QwenAndCLIPPromptEncoder(PromptEncoder):
    """A base's two text encoders, in a pipeline that holds nothing else: its cut of long captions is its own.

    Args:
        family: of the base.
        device: to encode on.
    """

    def __init__(self, family: Family, device: torch.device | str) -> None:
        from diffusers import Kandinsky5T2VPipeline
        from transformers import AutoTokenizer, CLIPTextModel, Qwen2_5_VLForConditionalGeneration

        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        encoder, encoder_2 = (
            load_part(model_class, family.base, part, dtype=dtype).to(device).eval().requires_grad_(False)
            for model_class, part in (
                (Qwen2_5_VLForConditionalGeneration, "text_encoder"),
                (CLIPTextModel, "text_encoder_2"),
            )
        )
        self.device = torch.device(device)
        self.pipeline: Any = Kandinsky5T2VPipeline(
            transformer=None,
            vae=None,
            scheduler=None,
            text_encoder=encoder,
            text_encoder_2=encoder_2,
            # Published ones are processors of pictures and videos, too, which need torchvision: text is all there is.
            tokenizer=load_part(AutoTokenizer, family.base, "tokenizer"),
            tokenizer_2=load_part(AutoTokenizer, family.base, "tokenizer_2"),
        )

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) and ``pooled_projections`` (P,) of each caption, by itself: there is no mask."""
        encoded = []
        for caption in captions:
            embeds, pooled, _ = self.pipeline.encode_prompt(
                caption, max_sequence_length=MAX_PROMPT_TOKENS, device=self.device
            )
            encoded.append({"prompt_embeds": embeds[0].float().cpu(), "pooled_projections": pooled[0].float().cpu()})
        return encoded

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """What Qwen2.5-VL reads. CLIP, which sums a caption up in one vector, reads its first 77 tokens."""
        from diffusers.pipelines.kandinsky5.pipeline_kandinsky import prompt_clean

        texts = [self.pipeline.prompt_template.format(prompt_clean(caption)) for caption in captions]
        limit = MAX_PROMPT_TOKENS + self.pipeline.prompt_template_encode_start_idx
        return count_tokens(self.pipeline.tokenizer, texts, limit)
