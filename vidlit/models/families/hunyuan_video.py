"""HunyuanVideo (https://arxiv.org/abs/2412.03603): a language model and CLIP read the prompt; guidance is an input."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, ReadTokens, count_tokens
from vidlit.models.families.unmasked_attention import UnmaskedAttention, every_token
from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 256
"""Of the caption, after the template."""
MAX_POOLED_TOKENS = 77
SKIPPED_LAYERS = 2
"""Of the language model, at its end: their output is not read."""
TRAINING_GUIDANCE = 1.0
"""What the guidance embedding is told while training: the model is shown clips as they are, not guided ones."""


class HunyuanVideo(UnmaskedAttention):
    """Tencent's HunyuanVideo, text-to-video.

    The published model is distilled: it takes the scale of guidance as an input and is called once a step.

    Raises:
        UserError: an image-to-video base.
    """

    transformer_class: ClassVar[str] = "HunyuanVideoTransformer3DModel"
    default_fps = 24.0
    # Anchored at the blocks: context_embedder has layers of the same names.
    lora_targets: ClassVar[str] = r"(single_)?transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)"
    comfyui_layers: ClassVar[Layers] = {
        "double_blocks.{}.img_attn_qkv": tuple(f"transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"),
        "double_blocks.{}.img_attn_proj": ("transformer_blocks.{}.attn.to_out.0",),
        "double_blocks.{}.txt_attn_qkv": tuple(f"transformer_blocks.{{}}.attn.add_{part}_proj" for part in "qkv"),
        "double_blocks.{}.txt_attn_proj": ("transformer_blocks.{}.attn.to_add_out",),
        "double_blocks.{}.img_mlp.fc1": ("transformer_blocks.{}.ff.net.0.proj",),
        "double_blocks.{}.img_mlp.fc2": ("transformer_blocks.{}.ff.net.2",),
        "double_blocks.{}.txt_mlp.fc1": ("transformer_blocks.{}.ff_context.net.0.proj",),
        "double_blocks.{}.txt_mlp.fc2": ("transformer_blocks.{}.ff_context.net.2",),
        "single_blocks.{}.linear1": (
            *(f"single_transformer_blocks.{{}}.attn.to_{part}" for part in "qkv"),
            "single_transformer_blocks.{}.proj_mlp",
        ),
        "single_blocks.{}.linear2": ("single_transformer_blocks.{}.proj_out",),
    }
    pipeline_class = "HunyuanVideoPipeline"
    prompt_recipe = f"Llama in the video template, {MAX_PROMPT_TOKENS} tokens after it; CLIP, pooled"
    prompt_extras = ("pooled_projections",)

    def __init__(self, base: Path, fps: float | None = None) -> None:
        super().__init__(base, fps)
        config = read_config(base, "transformer")
        if kind := config.get("image_condition_type"):
            raise UserError(
                f"{base} is an image-to-video HunyuanVideo ({kind}), which is not supported. Use a text-to-video "
                "base, or another family for image-to-video."
            )
        self.embeds_guidance = bool(config.get("guidance_embeds"))

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`. ``extras`` may hold ``guidance`` (B,), the scale to be told."""
        dtype = next(transformer.parameters()).dtype
        guidance = None
        if self.embeds_guidance:
            scale = conditioning.extras.get("guidance")
            guidance = 1000.0 * (torch.full_like(sigmas, TRAINING_GUIDANCE) if scale is None else scale.to(sigmas))
        return transformer(
            hidden_states=noisy.to(dtype),
            timestep=1000.0 * sigmas,
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            encoder_attention_mask=every_token(conditioning, noisy.device, dtype),
            pooled_projections=conditioning.extras["pooled_projections"].to(dtype),
            guidance=guidance,
            return_dict=False,
        )[0]

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler with the shift that the base's config states."""
        return euler_scheduler(self.base, num_steps)

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """The language model and CLIP."""
        return HunyuanPromptEncoder(self, device)


def euler_scheduler(base: Path, num_steps: int) -> Scheduler:
    """A base's flow-matching Euler with even sigmas, which it shifts, as HunyuanVideo's pipelines set them."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler = load_part(FlowMatchEulerDiscreteScheduler, base, "scheduler")
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 0.0, num_steps + 1)[:-1])
    return scheduler


class HunyuanPromptEncoder(PromptEncoder):
    """A base's two text encoders.

    Args:
        family: of the base.
        device: to encode on.
    """

    def __init__(self, family: Family, device: torch.device | str) -> None:
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
        from transformers import AutoTokenizer, CLIPTextModel, LlamaModel

        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        self.template: str = DEFAULT_PROMPT_TEMPLATE["template"]
        self.template_tokens: int = DEFAULT_PROMPT_TEMPLATE["crop_start"]
        self.tokenizer = load_part(AutoTokenizer, family.base, "tokenizer")
        self.tokenizer_2 = load_part(AutoTokenizer, family.base, "tokenizer_2")
        self.encoder, self.encoder_2 = (
            load_part(model_class, family.base, part, dtype=dtype).to(device).eval().requires_grad_(False)
            for model_class, part in ((LlamaModel, "text_encoder"), (CLIPTextModel, "text_encoder_2"))
        )

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) and ``pooled_projections`` (P,) of each caption."""
        tokens = self.tokenizer(
            [self.template.format(caption) for caption in captions],
            max_length=MAX_PROMPT_TOKENS + self.template_tokens,
            padding="max_length",
            truncation=True,
            return_tensors="pt",
        ).to(self.encoder.device)
        hidden = self.encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-(SKIPPED_LAYERS + 1)]
        lengths = (tokens.attention_mask.sum(dim=1) - self.template_tokens).tolist()
        pooled_tokens = self.tokenizer_2(
            captions, padding="max_length", max_length=MAX_POOLED_TOKENS, truncation=True, return_tensors="pt"
        )
        pooled = self.encoder_2(pooled_tokens.input_ids.to(self.encoder_2.device)).pooler_output
        return [
            {
                "prompt_embeds": row[self.template_tokens : self.template_tokens + length].float().cpu(),
                "pooled_projections": vector.float().cpu(),
            }
            for row, length, vector in zip(hidden, lengths, pooled, strict=True)
        ]

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """What the language model reads. CLIP, which sums a caption up in one vector, reads its first 77 tokens."""
        texts = [self.template.format(caption) for caption in captions]
        return count_tokens(self.tokenizer, texts, MAX_PROMPT_TOKENS + self.template_tokens)
