"""Wan 2.1 and 2.2 (https://arxiv.org/abs/2503.20314): one transformer class for text-to-video and image-to-video.

The base's configs tell which it is: Wan 2.1 text-to-video, Wan 2.1 image-to-video (the first frame's latents and a mask
come in as further channels, its CLIP tokens beside the prompt's), Wan 2.2 TI2V-5B, which has a timestep for every token
and can so be given a clean first frame, or Wan 2.2 A14B, two transformers of Wan 2.1's shape: one for high noise and
one for low, with the boundary between them, in sigma after the shift, in ``model_index.json``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.errors import UserError
from vidlit.models.base_folder import SCHEDULER, diffusers_class, load_part, read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, T5PromptEncoder, VideoEncoder
from vidlit.models.families import wan_tokens
from vidlit.models.family import Family
from vidlit.models.parts import Expert

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

MAX_PROMPT_TOKENS = 512


class Wan(Family):
    """Alibaba's Wan 2.1 (1.3B, 14B, image-to-video 14B) and Wan 2.2 (TI2V-5B, A14B, image-to-video A14B).

    Raises:
        UserError: the base is given a last frame, too, or is a pair that does not say where one expert's turn ends.
    """

    transformer_class: ClassVar[str] = "WanTransformer3DModel"
    lora_targets: ClassVar[str] = r"blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
    comfyui_layers: ClassVar[Layers] = {
        **{
            f"blocks.{{}}.{ours}.{short}": (f"blocks.{{}}.{theirs}.{name}",)
            for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
            for short, name in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0"))
        },
        "blocks.{}.cross_attn.k_img": ("blocks.{}.attn2.add_k_proj",),
        "blocks.{}.cross_attn.v_img": ("blocks.{}.attn2.add_v_proj",),
        "blocks.{}.ffn.0": ("blocks.{}.ffn.net.0.proj",),
        "blocks.{}.ffn.2": ("blocks.{}.ffn.net.2",),
    }
    default_fps = 16.0
    pipeline_class = "WanPipeline"
    prompt_length = MAX_PROMPT_TOKENS  # the transformer takes no mask: it has learned to read zeros after the prompt
    prompt_recipe = f"UMT5, padded to {MAX_PROMPT_TOKENS} with a mask"
    clip_recipe = "first frame and grey through the VAE; its CLIP tokens, last layer but one"

    def __init__(self, base: Path, fps: float | None = None) -> None:
        index, config = read_config(base, "", "model_index.json"), read_config(base, "transformer")
        if (index.get("transformer_2") or [None])[0]:
            boundary = index.get("boundary_ratio")
            if not isinstance(boundary, float) or not 0 < boundary < 1:
                raise UserError(
                    f"{base} holds two experts (transformer and transformer_2), but boundary_ratio in model_index.json "
                    f"is {boundary!r}: it must be the noise level, between 0 and 1, below which the second is asked."
                )
            self.experts = (Expert("transformer", boundary, "high"), Expert("transformer_2", 0.0, "low"))
        if config.get("pos_embed_seq_len"):
            raise UserError(f"{base} is given a first and a last frame, which vidlit does not train.")
        self.expand_timesteps = bool(index.get("expand_timesteps"))
        self.takes_clean_frames = self.expand_timesteps
        if self.expand_timesteps:
            self.default_fps = 24.0
        self.from_image = config["in_channels"] > config["out_channels"]
        if self.from_image:
            self.pipeline_class = "WanImageToVideoPipeline"
            reads_clip = config.get("image_dim") is not None
            self.clip_extras = ("image_latents", "image_embeds") if reads_clip else ("image_latents",)
        super().__init__(base, fps)

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`."""
        dtype: Any = transformer.dtype  # without the modules kept in float32
        hidden, embeds = noisy, conditioning.extras.get("image_embeds")
        if self.from_image:
            image = conditioning.extras["image_latents"]
            mask = noisy.new_zeros(len(noisy), self.compression[0], *noisy.shape[2:])
            mask[:, :, 0] = 1  # one channel for each video frame in a latent frame: given, or to be made
            hidden = torch.cat([noisy, mask, image.to(noisy)], dim=1)
        if self.expand_timesteps:
            num_frames, height, width = noisy.shape[2:]
            tokens = height * width // 4  # patches of 2 x 2
            sigmas = sigmas.view(len(noisy), -1, 1).expand(-1, num_frames, tokens).flatten(1)
        predicted = transformer(
            hidden_states=hidden.to(dtype),
            timestep=1000.0 * sigmas,
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            encoder_hidden_states_image=None if embeds is None else embeds.to(dtype),
            return_dict=False,
        )[0]
        return predicted

    def split_tokens(self, transformer: nn.Module, mesh: DeviceMesh) -> None:
        """See :attr:`Family.split_tokens`."""
        wan_tokens.split_tokens(transformer, mesh)

    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """The base's own, UniPC in published folders, with its own fixed shift."""
        scheduler_class = diffusers_class(self.base, "scheduler", SCHEDULER, "scheduler_config.json")
        scheduler = load_part(scheduler_class, self.base, "scheduler")
        scheduler.set_timesteps(num_steps)
        return AskedAtTimesteps(scheduler)

    @property
    def compression(self) -> tuple[int, int]:
        """As the VAE's config states it."""
        config = read_config(self.base, "vae")
        return int(config.get("scale_factor_temporal", 4)), int(config.get("scale_factor_spatial", 8))

    @property
    def latent_channels(self) -> int:
        """See :attr:`Family.latent_channels`."""
        return int(read_config(self.base, "vae")["z_dim"])

    def load_vae(self, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
        """See :meth:`Family.load_vae`; in float32 everywhere, as it is published."""
        return super().load_vae(device, dtype or torch.float32)

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """See :meth:`Family.statistics`."""
        return torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """With the first frame's latents and CLIP tokens where the base is image-to-video."""
        return (WanImageEncoder if self.from_image else VideoEncoder)(self, device, with_std)

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """UMT5 with a mask, captions cleaned as the pipeline does it."""
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        return T5PromptEncoder(self, device, MAX_PROMPT_TOKENS, attend_padding=False, clean=prompt_clean)


class WanImageEncoder(VideoEncoder):
    """Latents of a video, and what an image-to-video base reads of its first frame.

    Args:
        family: of the base.
        device: to encode on.
        with_std: see :class:`VideoEncoder`.
    """

    def __init__(self, family: Family, device: torch.device | str, with_std: bool = False) -> None:
        super().__init__(family, device, with_std)
        self.image_encoder: Any = None
        if "image_embeds" in family.clip_extras:
            from transformers import CLIPImageProcessor, CLIPVisionModel

            self.processor = load_part(CLIPImageProcessor, family.base, "image_processor")
            # In float32, as it is published: it is small, and runs once a clip.
            encoder = load_part(CLIPVisionModel, family.base, "image_encoder", dtype=torch.float32)
            self.image_encoder = encoder.to(device).eval().requires_grad_(False)

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        """See :class:`VideoEncoder`; ``image_latents`` (B, C, F, H, W), ``image_embeds`` (B, tokens, D)."""
        frame = video[:, :, :1]
        grey = torch.zeros_like(video[:, :, 1:])
        encoded = super().__call__(video)
        encoded["image_latents"] = self.family.encode_video(self.vae, torch.cat([frame, grey], dim=2))
        if self.image_encoder is not None:
            pixels = ((frame[:, :, 0] + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            images = self.processor(images=list(pixels), return_tensors="pt").pixel_values
            images = images.to(self.image_encoder.device)
            encoded["image_embeds"] = self.image_encoder(images, output_hidden_states=True).hidden_states[-2]
        return encoded


class AskedAtTimesteps:
    """A scheduler whose model is asked at its timesteps, as pipelines do: UniPC rounds them down from its sigmas.

    Args:
        scheduler: a diffusers scheduler of flow matching with 1000 timesteps, its timesteps set.
    """

    def __init__(self, scheduler: Any) -> None:
        self.timesteps: Tensor = scheduler.timesteps
        self.sigmas = self.timesteps / 1000.0
        self.step = scheduler.step
