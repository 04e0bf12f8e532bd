"""CogVideoX (https://arxiv.org/abs/2408.06072): v-prediction on a DDPM schedule, frames before channels, no mask."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.diffusion.ddpm import DDPMTimesteps
from vidlit.diffusion.noising import keyed_generator
from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.encoders import PromptEncoder, T5PromptEncoder, VideoEncoder
from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning

MAX_PROMPT_TOKENS = 226
SCHEDULERS = ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler")
LOG_IMAGE_NOISE = (-3.0, 0.5)
"""Mean and standard deviation of the logarithm of the noise on a first frame's pixels, from -1 to 1, that the published
models were trained with."""
IMAGE_DROPOUT = 0.05
"""Share of the samples that they were trained on without a first frame."""
OFS = 2.0
"""What CogVideoX 1.5 image-to-video was trained with as the input of its ``ofs`` embedding, always the same."""


class CogVideoX(Family):
    """CogVideoX 2B, 5B and 1.5, text-to-video and image-to-video.

    The project's noisy latents ``(1 - sigma) x + sigma eps``, divided by ``n = sqrt((1 - sigma)^2 + sigma^2)``, are the
    variance-preserving ``sqrt(a) x + sqrt(1 - a) eps`` that these models were trained on, with
    ``a = (1 - sigma)^2 / n^2``: so sigma names a timestep, the one whose cumulative alpha is ``a``.

    Image-to-video bases (twice as many input channels) read the latents of the first frame, alone in its channels,
    followed by zeros. In training they are noisy or left out, so that the model does not copy the picture to the pixel.
    """

    transformer_class: ClassVar[str] = "CogVideoXTransformer3DModel"
    default_fps = 8.0
    lora_targets: ClassVar[str] = r"transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
    pipeline_class = "CogVideoXPipeline"
    prompt_length = MAX_PROMPT_TOKENS
    prompt_recipe = f"T5, padded to {MAX_PROMPT_TOKENS} without a mask, padding kept"
    clip_recipe = "mode of the first frame's latents, without noise and with exp(-3) of it"

    def __init__(self, base: Path, fps: float | None = None) -> None:
        config = read_config(base, "transformer")
        # CogVideoX 1.5 is the one with patches in time; it was trained at 16 frames a second.
        super().__init__(base, fps or (16.0 if config.get("patch_size_t") else None))
        self.config = config
        self.conditioned_on_image = int(config["in_channels"]) == 2 * int(config["out_channels"])
        if self.conditioned_on_image:
            self.pipeline_class = "CogVideoXImageToVideoPipeline"
            self.clip_extras = ("image_latents", "noised_image_latents")
        self._tables: dict[torch.device, Tensor] = {}
        self._rotary: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    # -- the schedule

    @cached_property
    def _schedule(self) -> Any:
        """The base's own scheduler."""
        import diffusers

        name = read_config(self.base, "scheduler", "scheduler_config.json").get("_class_name")
        if name not in SCHEDULERS:
            raise UserError(f"{self.base}: a CogVideoX base has one of the schedulers {SCHEDULERS}, not {name!r}.")
        scheduler = load_part(getattr(diffusers, name), self.base, "scheduler")
        if scheduler.config.prediction_type != "v_prediction":
            raise UserError(
                f"{self.base}: the scheduler predicts {scheduler.config.prediction_type!r}; only bases with "
                "v_prediction, as all published CogVideoX models are, can be trained."
            )
        return scheduler

    @cached_property
    def _table(self) -> Tensor:
        """Sigma of every timestep, rising, (1000,) float64."""
        alphas = self._schedule.alphas_cumprod.double()
        signal, noise = alphas.sqrt(), (1 - alphas).sqrt()
        return noise / (signal + noise)

    def noising(self) -> DDPMTimesteps:
        """The schedule's own timesteps, each as likely as the others, and the weights of a loss on ``v``."""
        return DDPMTimesteps(levels=tuple(self._table.tolist()))

    def timesteps(self, sigmas: Tensor) -> Tensor:
        """Timesteps (B,) whose noise level is that of sigmas (B,), between two of the schedule where it has none."""
        if sigmas.device not in self._tables:  # once: a copy waits for the device
            self._tables[sigmas.device] = self._table.to(sigmas.device)
        table = self._tables[sigmas.device]
        wanted = sigmas.double().clamp(table[0], table[-1])
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        exact = above - 1 + (wanted - low) / (high - low)
        # A sigma that went through float32 must not miss its timestep by a hair.
        return torch.where((exact - exact.round()).abs() < 1e-2, exact.round(), exact).to(sigmas.dtype)

    def load_scheduler(self, num_steps: int, num_tokens: int) -> VelocityScheduler:
        """The base's own scheduler, DDIM or DPM, driven by velocities."""
        scheduler = type(self._schedule).from_config(self._schedule.config)
        scheduler.set_timesteps(num_steps)
        return VelocityScheduler(scheduler, self._table)

    # -- the transformer

    def velocity(self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning) -> Tensor:
        """See :meth:`Family.velocity`.

        With ``x_t = noisy / n``, ``v = sqrt(a) eps - sqrt(1 - a) x`` is turned by
        ``eps - x = (v + (2 sigma - 1) x_t) / n``.
        """
        num_frames, height, width = noisy.shape[2:]
        dtype = next(transformer.parameters()).dtype
        level = sigmas.view(-1, 1, 1, 1, 1)
        scale = ((1 - level) ** 2 + level**2).sqrt()
        x_t = (noisy / scale).transpose(1, 2)
        read = x_t
        if self.conditioned_on_image:
            image = conditioning.extras["image_latents"].to(x_t).transpose(1, 2)
            read = torch.cat([x_t, torch.cat([image, image.new_zeros(x_t[:, 1:].shape)], dim=1)], dim=2)
        v = transformer(
            hidden_states=read.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            timestep=self.timesteps(sigmas),
            ofs=noisy.new_full((1,), OFS) if self.config.get("ofs_embed_dim") else None,
            image_rotary_emb=self._rotary_embedding(num_frames, height, width, noisy.device),
            return_dict=False,
        )[0]
        return ((v + (2 * level - 1) * x_t) / scale).transpose(1, 2)

    def _rotary_embedding(self, *shape_and_device: Any) -> tuple[Tensor, Tensor] | None:
        """As the pipeline makes them, kept for each latent shape; ``None`` for the 2B model, which has none."""
        if not self.config.get("use_rotary_positional_embeddings"):
            return None
        if shape_and_device not in self._rotary:
            self._rotary[shape_and_device] = self._make_rotary_embedding(*shape_and_device)
        return self._rotary[shape_and_device]

    def _make_rotary_embedding(
        self, num_frames: int, height: int, width: int, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        from diffusers.models.embeddings import get_3d_rotary_pos_embed
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        patch, patch_t = self.config["patch_size"], self.config.get("patch_size_t")
        grid = (height // patch, width // patch)
        base_height, base_width = self.config["sample_height"] // patch, self.config["sample_width"] // patch
        given: dict[str, Any] = {"embed_dim": self.config["attention_head_dim"], "grid_size": grid, "device": device}
        if patch_t:  # CogVideoX 1.5 cuts its positions out of one large grid ...
            given |= {"crops_coords": None, "grid_type": "slice", "max_size": (base_height, base_width)}
        else:  # ... and 1.0 stretches them to fit the size it was trained at.
            given |= {"crops_coords": get_resize_crop_region_for_grid(grid, base_width, base_height)}
        return get_3d_rotary_pos_embed(temporal_size=num_frames // (patch_t or 1), **given)

    def augment_conditioning(self, conditioning: Conditioning, generators: Sequence[torch.Generator]) -> Conditioning:
        """First frames with noise, or left out, as in the authors' training.

        They put noise on pixels, before the VAE. A store holds what the VAE made of one draw at the median level, and
        other levels lie on the straight line through it and the clean frame: within 10 % for most draws, measured on a
        small VAE with random weights.
        """
        if not self.conditioned_on_image:
            return conditioning
        clean, noised = (conditioning.extras[name].float() for name in self.clip_extras)
        level = torch.stack([torch.randn((), generator=each) for each in generators]).mul(LOG_IMAGE_NOISE[1]).exp()
        kept = torch.stack([torch.rand((), generator=each) for each in generators]) >= IMAGE_DROPOUT
        level, kept = (each.view(-1, 1, 1, 1, 1).to(clean.device, non_blocking=True) for each in (level, kept))
        return conditioning.with_extras({"image_latents": kept * (clean + level * (noised - clean))})

    # -- latents

    @cached_property
    def compression(self) -> tuple[int, int]:
        """As the pipeline reckons it: this VAE does not say."""
        vae = read_config(self.base, "vae")
        if "block_out_channels" not in vae:
            return super().compression
        return int(vae["temporal_compression_ratio"]), 2 ** (len(vae["block_out_channels"]) - 1)

    @property
    def frame_multiple(self) -> int:
        """Latent frames after the first are decoded in pairs: another number comes back as a longer video."""
        return 2 * self.compression[0]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """See :meth:`Family.latent_shape`; with CogVideoX 1.5's frame of padding.

        Raises:
            UserError: a size that this transformer cannot take.
        """
        channels, frames, *size = super().latent_shape(num_frames, height, width)
        learned = [self.config["sample_frames"], self.config["sample_height"], self.config["sample_width"]]
        if self.config.get("use_learned_positional_embeddings") and [num_frames, *size] != learned:
            wanted = "x".join(map(str, (learned[0], *(side * self.compression[1] for side in learned[1:]))))
            raise UserError(
                f"{self.base} learned a position for each part of {wanted} (frames x height x width) and accepts no "
                f"other size, such as {num_frames}x{height}x{width}. Choose the bucket {wanted}."
            )
        return channels, frames + self._padding(frames), size[0], size[1]

    def _padding(self, frames: int) -> int:
        """Latent frames that fill up the transformer's patches in time, before the first: CogVideoX 1.5 alone."""
        return -frames % (self.config.get("patch_size_t") or 1)

    def _without_padding(self, latents: Tensor) -> Tensor:
        """An even number of latent frames begins with one of padding."""
        padding = 1 - latents.shape[2] % 2 if self.config.get("patch_size_t") else 0
        return latents[:, :, padding:]

    def _padded(self, latents: Tensor) -> Tensor:
        first = latents[:, :, :1].expand(-1, -1, self._padding(latents.shape[2]), -1, -1)
        return torch.cat([first, latents], dim=2)

    def normalise(self, vae: Any, raw: Tensor) -> Tensor:
        """See :meth:`Family.normalise`. Padding repeats the first frame, as in its training."""
        return self._padded(super().normalise(vae, raw))

    def normalise_std(self, vae: Any, raw: Tensor) -> Tensor:
        """See :meth:`Family.normalise_std`. Padded as the latents are."""
        return self._padded(super().normalise_std(vae, raw))

    def draw_latents(self, latents: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """See :meth:`Family.draw_latents`. Padding repeats what was drawn of the first frame."""
        return self._padded(self._without_padding(super().draw_latents(latents, std, noise)))

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """See :meth:`Family.decode_latents`; without the padding."""
        return super().decode_latents(vae, self._without_padding(latents))

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """The VAE, and for image-to-video the VAE on the first frame."""
        return (FirstFrameEncoder if self.conditioned_on_image else VideoEncoder)(self, device, with_std)

    # -- prompts

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """T5, 226 tokens: the transformer has no mask and reads the padding too, so it is kept."""
        return T5PromptEncoder(self, device, MAX_PROMPT_TOKENS, attend_padding=True, keep_padding=True)


class FirstFrameEncoder(VideoEncoder):
    """Latents of a clip, and of its first frame alone."""

    def __call__(self, video: Tensor) -> dict[str, Tensor]:
        """Adds ``image_latents`` and ``noised_image_latents``, each (B, C, 1, H, W)."""
        frame = video[:, :, :1]
        generators = [keyed_generator("first frame", digest(row)) for row in frame]
        noise = torch.stack([torch.randn(frame.shape[1:], generator=each) for each in generators]).to(frame.device)
        made = super().__call__(video)
        made["image_latents"] = self._encode_frame(frame)
        made["noised_image_latents"] = self._encode_frame(frame + math.exp(LOG_IMAGE_NOISE[0]) * noise)
        return made

    def _encode_frame(self, frame: Tensor) -> Tensor:
        config: Any = self.vae.config
        image = self.family.encode_video(self.vae, frame)[:, :, :1]
        # CogVideoX 1.5 was trained, by mistake, with image latents that were divided by the factor.
        return image / config.scaling_factor**2 if config.invert_scale_latents else image


def digest(values: Tensor) -> str:
    """A name of a tensor, such as one video's start noise (C, F, H, W), for :func:`keyed_generator`."""
    return hashlib.sha256(values.float().cpu().numpy().tobytes()).hexdigest()


class VelocityScheduler:
    """A CogVideoX scheduler that takes velocities and the project's noisy latents, step by step from the first.

    Args:
        scheduler: with its timesteps set.
        table: sigma of every training timestep, (1000,).
    """

    def __init__(self, scheduler: Any, table: Tensor) -> None:
        self.scheduler = scheduler
        self.timesteps: Tensor = scheduler.timesteps
        self.sigmas = torch.cat([table[self.timesteps], table.new_zeros(1)]).float()
        self._step = 0
        self._generators: list[torch.Generator] = []
        self._previous: Tensor | None = None

    @property
    def init_noise_sigma(self) -> float:
        """What pure noise is multiplied by to be noisy latents at the first sigma: 1 where that is 1."""
        return self._scale(0)

    def _scale(self, step: int) -> float:
        sigma = float(self.sigmas[step])
        return float(((1 - sigma) ** 2 + sigma**2) ** 0.5)

    def step(self, velocity: Tensor, timestep: Tensor, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Noisy latents (B, C, F, H, W) at this timestep to those at the next one."""
        from diffusers import CogVideoXDPMScheduler

        if timestep == self.timesteps[0]:
            self._step, self._previous = 0, None
        step, scale, sigma = self._step, self._scale(self._step), float(self.sigmas[self._step])
        # Frames before channels, or its noise would fall on other places than in the pipeline.
        x_t = (latents / scale).transpose(1, 2)
        v = velocity.transpose(1, 2) * scale - (2 * sigma - 1) * x_t
        if isinstance(self.scheduler, CogVideoXDPMScheduler):
            if step == 0:
                # It adds noise on its way: keyed by each video's own start, whatever else is in the batch.
                self._generators = [keyed_generator("dpm", digest(row)) for row in latents]
            before = self.timesteps[step - 1] if step else None
            x_t, self._previous = self.scheduler.step(
                v, self._previous, timestep, before, x_t, generator=self._generators
            )
        else:
            x_t = self.scheduler.step(v, timestep, x_t, return_dict=False)[0]
        self._step += 1
        return ((x_t * self._scale(self._step)).transpose(1, 2),)
