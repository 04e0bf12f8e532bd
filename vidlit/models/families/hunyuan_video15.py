"""HunyuanVideo 1.5 (https://arxiv.org/abs/2511.18870), text-to-video and image-to-video.

Qwen2.5-VL reads the prompt, ByT5 what stands in it in quotes and is to be written in the picture. An image comes in as
further channels (the first frame's latents and a mask) and as SigLIP's tokens beside the prompt's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS, by_stream
from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, ReadTokens, VideoEncoder, count_tokens
from vidlit.models.families.hunyuan_video import euler_scheduler
from vidlit.models.families.unmasked_attention import UnmaskedAttention, every_token, joint_attention
from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 1000
"""Of the caption and what ends the template."""
TEMPLATE_TOKENS = 108
"""Of the template, before the caption: cut away."""
SKIPPED_LAYERS = 2
"""Of Qwen2.5-VL, at its end: their output is not read."""
MAX_GLYPH_TOKENS = 256
"""Bytes of what is to be written."""
TRAINING_SHIFT = 3.0
"""Default of ``train.py`` in https://github.com/Tencent-Hunyuan/HunyuanVideo-1.5, for every size."""
PIPELINES = {"HunyuanVideo15Pipeline": False, "HunyuanVideo15ImageToVideoPipeline": True}
"""Pipelines of a base, and whether they start from an image; ``task_type`` of the transformer's config cannot be relied
on."""
TILED_FROM = 20_000
"""Latent positions of a video. The VAE's attention holds a mask over all pairs of them: in bfloat16 0.8 GB at
49x480x832, which has 20,280; 4.9 GB at 121x480x848, 25 GB at 121x720x1280."""
_LAST_BLOCKS_CONTEXT = r"transformer_blocks\.{}\.(attn\.(add_q_proj|norm_added_q|to_add_out)|ff_context)(\..*)?"
"""What makes the prompt's tokens for a next block."""


class HunyuanVideo15(UnmaskedAttention):
    """Tencent's HunyuanVideo 1.5.

    Raises:
        UserError: a step-distilled base, or one whose pipeline is not known.
    """

    transformer_class: ClassVar[str] = "HunyuanVideo15Transformer3DModel"
    # Anchored at the blocks: context_embedder has layers of the same names.
    lora_targets: ClassVar[str] = r"transformer_blocks\.\d+\.attn\.(to_q|to_k|to_v|to_out\.0)"
    comfyui_layers: ClassVar[Layers] = {
        **{f"double_blocks.{{}}.img_attn_{part}": (f"transformer_blocks.{{}}.attn.to_{part}",) for part in "qkv"},
        **{f"double_blocks.{{}}.txt_attn_{part}": (f"transformer_blocks.{{}}.attn.add_{part}_proj",) for part in "qkv"},
        "double_blocks.{}.img_attn_proj": ("transformer_blocks.{}.attn.to_out.0",),
        "double_blocks.{}.txt_attn_proj": ("transformer_blocks.{}.attn.to_add_out",),
        "double_blocks.{}.img_mlp.fc1": ("transformer_blocks.{}.ff.net.0.proj",),
        "double_blocks.{}.img_mlp.fc2": ("transformer_blocks.{}.ff.net.2",),
        "double_blocks.{}.txt_mlp.fc1": ("transformer_blocks.{}.ff_context.net.0.proj",),
        "double_blocks.{}.txt_mlp.fc2": ("transformer_blocks.{}.ff_context.net.2",),
    }
    default_fps = 24.0
    pipeline_class = "HunyuanVideo15Pipeline"
    vae_recipe = f"in tiles from {TILED_FROM} latent positions on"
    prompt_recipe = (
        f"Qwen2.5-VL in the video template, {MAX_PROMPT_TOKENS} tokens after it, last layer but two; "
        f"ByT5 of quoted text, padded to {MAX_GLYPH_TOKENS} with zeros"
    )
    prompt_extras = ("glyph_embeds",)
    processors: ClassVar = {"HunyuanVideo15AttnProcessor2_0": joint_attention}
    clip_recipe = "first frame through the VAE; its SigLIP tokens"

    def __init__(self, base: Path, fps: float | None = None) -> None:
        super().__init__(base, fps)
        name, config = read_config(base, "", "model_index.json")["_class_name"], read_config(base, "transformer")
        if name not in PIPELINES:
            raise UserError(f"{base}/model_index.json names {str(name)[:100]!r}; known are {', '.join(PIPELINES)}.")
        if config.get("use_meanflow"):
            raise UserError(
                f"{base} is step-distilled (use_meanflow): it is told where a step ends, which vidlit does not train. "
                "Use a base without step distillation."
            )
        self.pipeline_class, self.from_image = name, PIPELINES[name]
        self.image_dim = int(config["image_embed_dim"])
        self.idle = _LAST_BLOCKS_CONTEXT.format(int(config["num_layers"]) - 1)
        if self.from_image:
            self.clip_extras = ("image_latents", "image_embeds")
        else:
            self.idle += r"|image_embedder(\..*)?"

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`."""
        device = noisy.device.type
        lowered = device != "meta" and torch.is_autocast_enabled(device)
        # Sharded weights are gathered in autocast's dtype, and the first layer of glyphs is one it does not see to.
        dtype = torch.get_autocast_dtype(device) if lowered else next(transformer.parameters()).dtype
        timestep = 1000.0 * sigmas  # without autocast layers of bfloat16 take no other; the pipeline rounds it, too
        given = noisy.new_zeros(len(noisy), noisy.shape[1] + 1, *noisy.shape[2:])  # an image's latents, and a mask
        embeds = noisy.new_zeros(len(noisy), 0, self.image_dim)
        if self.from_image:
            given[:, :-1, :1] = conditioning.extras["image_latents"]
            given[:, -1, 0] = 1
            embeds = conditioning.extras["image_embeds"]
        glyphs = conditioning.extras["glyph_embeds"]
        return transformer(
            hidden_states=torch.cat([noisy, given], dim=1).to(dtype),
            timestep=timestep if lowered else timestep.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            encoder_attention_mask=every_token(conditioning, noisy.device, dtype),
            encoder_hidden_states_2=glyphs.to(dtype),
            encoder_attention_mask_2=glyphs.any(dim=-1).to(dtype),
            image_embeds=embeds.to(dtype),
            return_dict=False,
        )[0]

    def predict(
        self,
        transformers: Mapping[str, nn.Module],
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
        expert: str | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """See :meth:`Family.predict`; without the padding of glyphs, too."""
        glyphs = conditioning.extras["glyph_embeds"]
        if glyphs.is_meta or is_fake(glyphs):  # there is nothing to look at: as many as there may be
            return super().predict(transformers, noisy, sigmas, conditioning, expert)
        # A look at the device; the transformer itself has further ones before its blocks.
        counts = glyphs.any(dim=-1).sum(dim=1).tolist()
        if len(set(counts)) == 1:
            fewer = conditioning.with_extras({"glyph_embeds": glyphs[:, : counts[0]]})
            return super().predict(transformers, noisy, sigmas, fewer, expert)
        velocities = [
            self.predict(transformers, noisy[row : row + 1], sigmas[row : row + 1], conditioning.of_rows([row]), expert)
            for row in range(len(counts))
        ]
        return torch.cat([by_stream(velocity)[LATENTS] for velocity in velocities])

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """Flow-matching Euler with the shift that the base's config states, as HunyuanVideo's."""
        return euler_scheduler(self.base, num_steps)

    def noising(self) -> RectifiedFlow:
        """Logit-normal, shifted as in the authors' ``train.py``, less than in sampling (5 to 9)."""
        return RectifiedFlow(shift=TRAINING_SHIFT)

    def load_vae(self, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
        """See :meth:`Family.load_vae`; it takes one video after the other: its attention's mask is of one."""
        from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock

        vae: Any = super().load_vae(device, dtype)
        vae.enable_slicing()
        for module in vae.modules():
            if isinstance(module, HunyuanVideo15AttnBlock):
                vars(module)["prepare_causal_attention_mask"] = causal_mask
        return vae

    def posterior(self, vae: Any, video: Tensor) -> Any:
        """See :meth:`Family.posterior`; large ones in tiles."""
        vae.use_tiling = math.prod(self.latent_shape(*video.shape[2:])[1:]) >= TILED_FROM
        return super().posterior(vae, video)

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """See :meth:`Family.decode_latents`; large ones in tiles."""
        vae.use_tiling = latents[0, 0].numel() >= TILED_FROM
        return super().decode_latents(vae, latents)

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """With the first frame's latents and SigLIP tokens where the base is image-to-video."""
        return (HunyuanImageEncoder if self.from_image else VideoEncoder)(self, device, with_std)

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """Qwen2.5-VL and ByT5."""
        return QwenAndByT5PromptEncoder(self, device)


def causal_mask(
    n_frame: int, n_hw: int, dtype: torch.dtype, device: torch.device, batch_size: int | None = None
) -> Tensor:
    """The VAE's own mask (L, L) over positions, by frame: diffusers fills it by position, 20,280 at 49x480x832.

    Args:
        n_frame: latent frames.
        n_hw: positions of one.
        dtype: of the mask.
        device: to make it on.
        batch_size: of videos, as a first dimension; ``None`` for no such dimension.
    """
    mask = torch.full((n_frame * n_hw, n_frame * n_hw), -math.inf, dtype=dtype, device=device)
    for seen in range(n_hw, n_frame * n_hw + 1, n_hw):
        mask[seen - n_hw : seen, :seen] = 0
    return mask if batch_size is None else mask.expand(batch_size, -1, -1)


class HunyuanImageEncoder(VideoEncoder):
    """Latents of a video, and what an image-to-video base reads of its first frame.

    Args:
        family: of the base.
        device: to encode on.
        with_std: see :class:`VideoEncoder`.
    """

    def __init__(self, family: Family, device: torch.device | str, with_std: bool = False) -> None:
        from transformers import SiglipImageProcessor, SiglipVisionModel

        super().__init__(family, device, with_std)
        self.processor = load_part(SiglipImageProcessor, family.base, "feature_extractor")
        # In float32: it is small, and runs once a clip.
        encoder = load_part(SiglipVisionModel, family.base, "image_encoder", dtype=torch.float32)
        self.image_encoder: Any = encoder.to(device).eval().requires_grad_(False)

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        """See :class:`VideoEncoder`; ``image_latents`` (B, C, 1, H, W), ``image_embeds`` (B, tokens, D)."""
        frame = video[:, :, :1]
        encoded = super().__call__(video)
        encoded["image_latents"] = self.family.encode_video(self.vae, frame)
        pixels = ((frame[:, :, 0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        images = self.processor(images=list(pixels), return_tensors="pt").pixel_values
        encoded["image_embeds"] = self.image_encoder(images.to(self.image_encoder.device)).last_hidden_state
        return encoded


class QwenAndByT5PromptEncoder(PromptEncoder):
    """A base's two text encoders.

    Args:
        family: of the base.
        device: to encode on.
    """

    def __init__(self, family: Family, device: torch.device | str) -> None:
        from diffusers import HunyuanVideo15Pipeline
        from transformers import AutoTokenizer, ByT5Tokenizer, Qwen2_5_VLTextModel, T5EncoderModel

        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        pipeline: Any = HunyuanVideo15Pipeline
        self.system_message = inspect.signature(pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
        self.encode_glyphs = pipeline._get_byt5_prompt_embeds
        self.tokenizer = load_part(AutoTokenizer, family.base, "tokenizer")
        self.tokenizer_2 = load_part(ByT5Tokenizer, family.base, "tokenizer_2")
        self.encoder, self.encoder_2 = (
            load_part(model_class, family.base, part, dtype=dtype).to(device).eval().requires_grad_(False)
            for model_class, part in ((Qwen2_5_VLTextModel, "text_encoder"), (T5EncoderModel, "text_encoder_2"))
        )

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (L, D) of each caption, and ``glyph_embeds`` (256, G), zero where it writes nothing."""
        # Padded to the longest: Qwen2.5-VL looks back alone, and the pipeline's padding to 1108 only costs time.
        tokens = self.tokenizer(
            self._in_template(captions),
            padding=True,
            truncation=True,
            max_length=MAX_PROMPT_TOKENS + TEMPLATE_TOKENS,
            return_tensors="pt",
        ).to(self.encoder.device)
        hidden = self.encoder(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, output_hidden_states=True
        ).hidden_states[-(SKIPPED_LAYERS + 1)]
        glyphs, mask = self.encode_glyphs(
            self.tokenizer_2, self.encoder_2, captions, self.encoder_2.device, MAX_GLYPH_TOKENS
        )
        lengths = tokens.attention_mask.sum(dim=1).tolist()
        return [
            {"prompt_embeds": row[TEMPLATE_TOKENS:length].float().cpu(), "glyph_embeds": glyph.float().cpu()}
            for row, length, glyph in zip(hidden, lengths, glyphs * mask[..., None], strict=True)
        ]

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """What Qwen2.5-VL reads; of what is to be written in the picture ByT5 reads the first 256 bytes."""
        return count_tokens(self.tokenizer, self._in_template(captions), MAX_PROMPT_TOKENS + TEMPLATE_TOKENS)

    def _in_template(self, captions: list[str]) -> list[str]:
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import format_text_input

        chats = format_text_input(captions, self.system_message)
        return self.tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=False)
