"""What differs between model families, behind one small interface.

A base is a diffusers folder (``transformer``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``) or a hub name.
Its family follows from the class that ``transformer/config.json`` names. To add a family, add one file to
``families/`` with one :class:`Family` subclass.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import pkgutil
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.diffusion.noising import RectifiedFlow
from vidlit.errors import UserError
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, VideoEncoder

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

_EDGE_BYTES = 1 << 20


class Family(ABC):
    """One family of video diffusion transformers: how to load, call, encode for and decode from it.

    Subclasses state the class attributes and implement the abstract methods; the rest is shared.

    Args:
        base: a local diffusers folder.
        fps: frames per second of the training clips; ``None`` takes the family's own.
    """

    transformer_class: ClassVar[str]
    """Class name in ``transformer/config.json``: how a base is recognised."""
    lora_targets: ClassVar[str]
    """Pattern of the layers that LoRA adapts by default, matched against whole module names."""

    comfyui_layers: ClassVar[Layers] = {}
    """Names that ComfyUI has for layers LoRA may adapt; empty where they are not known, and no such file is written."""

    # What may depend on the base: a subclass states it, or sets it when it has read the base's config.
    default_fps: float
    """Frame rate the published weights were trained at."""
    pipeline_class: str
    """diffusers pipeline that users load the results in."""
    prompt_length: int | None = None
    """Length prompts are padded to in a batch; ``None`` (to the longest) where the transformer masks padding."""
    prompt_recipe: str
    """How captions are tokenised and encoded, in words: part of the identity of prompt embeddings."""
    prompt_extras: tuple[str, ...] = ()
    """Names of further tensors stored with each caption's ``prompt_embeds`` and read into the conditioning."""
    clip_extras: tuple[str, ...] = ()
    """The same of each clip's ``latents``."""
    takes_first_frame: bool = False
    """Whether :meth:`velocity` takes a sigma for each latent frame, so that the first one can be given clean."""
    embeds_guidance: bool = False
    """The transformer takes the scale of guidance as an input, ``guidance`` (B,) among the conditioning's extras, and
    is called once a step: a distilled model."""
    clip_recipe: str = ""
    """How clip extras are made, in words: part of the identity of latents where there are any."""

    def __init__(self, base: Path, fps: float | None = None) -> None:
        self.base = base
        self.fps = fps or self.default_fps

    # -- the transformer

    def load_transformer(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The denoising transformer with the base's weights."""
        import diffusers

        model_class = getattr(diffusers, self.transformer_class)
        return _load(model_class, self.base, "transformer", torch_dtype=dtype)  # type: ignore[no-any-return]

    def empty_transformer(self) -> nn.Module:
        """The same structure with fresh weights, on the current device; on ``meta`` without memory for them."""
        import diffusers

        model_class = getattr(diffusers, self.transformer_class)
        return model_class.from_config(read_config(self.base, "transformer"))  # type: ignore[no-any-return]

    @abstractmethod
    def velocity(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
    ) -> Tensor:
        """The transformer's prediction as a velocity (``noise - latents``).

        Args:
            transformer: from :meth:`load_transformer`.
            noisy: (B, C, F, H, W).
            sigmas: (B,); or (B, F), one for each latent frame, where the family ``takes_first_frame``.
            conditioning: of B samples.

        Returns:
            (B, C, F, H, W).
        """

    @abstractmethod
    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """The base's diffusers scheduler with its timesteps set as the family's pipeline sets them.

        Wrapped where it is not of flow matching: see :class:`vidlit.diffusion.generate.Scheduler`.

        Args:
            num_steps: denoising steps.
            num_tokens: latent positions of one video, which some schedules shift by.
        """

    def noising(self) -> RectifiedFlow:
        """How to draw sigmas where the user says nothing: as the published model was trained, where that is known."""
        return RectifiedFlow()

    # -- latents

    @cached_property
    def compression(self) -> tuple[int, int]:
        """Frames and pixels (each side) that one latent position stands for, asked of the VAE itself."""
        vae_class, config = self._vae_class()
        with torch.device("meta"):  # the structure without memory for its weights
            vae = vae_class.from_config(config)
        return int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio)

    @cached_property
    def pixel_multiple(self) -> int:
        """What heights and widths must be multiples of: the VAE's compression times the transformer's patch."""
        patch = read_config(self.base, "transformer").get("patch_size", 1)
        return self.compression[1] * int(patch if isinstance(patch, int) else patch[-1])

    @property
    def frame_multiple(self) -> int:
        """What a number of frames, less one, must be a multiple of."""
        return self.compression[0]

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(read_config(self.base, "vae")["latent_channels"])

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(C, F, H, W) of the latents of one video of this size in frames and pixels."""
        temporal, spatial = self.compression
        return self.latent_channels, (num_frames - 1) // temporal + 1, height // spatial, width // spatial

    def load_vae(self, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
        """The VAE, frozen and in eval mode; in bfloat16 on a GPU unless told otherwise."""
        vae_class, _ = self._vae_class()
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        vae: nn.Module = _load(vae_class, self.base, "vae", torch_dtype=dtype).to(device)
        return vae.eval().requires_grad_(False)

    @property
    def encodes_to_points(self) -> bool:
        """The VAE's posterior has no width: there is nothing to draw latents from."""
        from vidlit.models.codec import PatchDCTCodec

        return bool(read_config(self.base, "vae").get("_class_name") == PatchDCTCodec.__name__)

    @abstractmethod
    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation that latents are normalised by: (C,), or () for all channels alike."""

    def posterior(self, vae: Any, video: Tensor) -> Any:
        """The VAE's distribution over the latents of videos (B, 3, F, H, W) in [-1, 1], before they are normalised."""
        return vae.encode(video.to(next(vae.parameters()).dtype)).latent_dist

    def encode_video(self, vae: Any, video: Tensor) -> Tensor:
        """Videos (B, 3, F, H, W) in [-1, 1] to latents (B, C, F, H, W), normalised as the transformer expects."""
        return self.normalise(vae, self.posterior(vae, video).mode())

    def normalise(self, vae: Any, raw: Tensor, *, is_std: bool = False) -> Tensor:
        """The VAE's own latents (B, C, F, H, W) as the transformer expects them, in float32.

        Args:
            vae: from :meth:`load_vae`.
            raw: latents, or
            is_std: their standard deviation, which is scaled but not shifted.
        """
        mean, std = (value.view(-1, 1, 1, 1) for value in self.statistics(vae))
        centred = raw.float() if is_std else raw.float() - mean.to(raw.device)
        return centred / std.to(raw.device)

    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        """What :meth:`normalise` did to latents (B, C, F, H, W), undone; in the VAE's dtype."""
        mean, std = (value.view(-1, 1, 1, 1).to(latents.device) for value in self.statistics(vae))
        return (latents * std + mean).to(next(vae.parameters()).dtype)

    def draw_latents(self, latents: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, F, H, W) of the posterior, from its mode, its standard deviation and noise of their shape."""
        return latents.float() + std.float() * noise

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """What makes latents, and clip extras where the family has any; see :class:`VideoEncoder`."""
        return VideoEncoder(self, device, with_std)

    @abstractmethod
    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, F, H, W) to videos (B, 3, F, H, W) in about [-1, 1]."""

    # -- prompts

    @abstractmethod
    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """Tokenizer and text encoder, ready to encode captions."""

    # -- identity

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what makes latents (``vae``) and prompt embeddings (``text``): change one, re-encode."""
        video = fingerprint(self.base / "vae")
        if self.clip_extras:
            recipe = f"{self.clip_recipe}{self.clip_extras}{video}"
            video = self._fingerprint(recipe, "image_encoder", "image_processor")
        return {"vae": video, "text": self._fingerprint(self.prompt_recipe, "text_encoder", "tokenizer")}

    @property
    def transformer_fingerprint(self) -> str:
        """What tells the base's transformer from others; see :func:`fingerprint`."""
        return fingerprint(self.base / "transformer")

    def _fingerprint(self, recipe: str, *parts: str) -> str:
        """A short hash of words and of the base's folders whose names begin like these."""
        folders = sorted(path for path in self.base.iterdir() if path.name.startswith(parts))
        return hashlib.sha256("".join([recipe, *map(fingerprint, folders)]).encode()).hexdigest()[:16]

    def _vae_class(self) -> tuple[Any, dict[str, Any]]:
        import diffusers

        from vidlit.models.codec import PatchDCTCodec

        config = read_config(self.base, "vae")
        name = config["_class_name"]
        return (PatchDCTCodec if name == PatchDCTCodec.__name__ else getattr(diffusers, name)), config


def open_family(base: str | Path, fps: float | None = None) -> Family:
    """The family of a base folder or hub name.

    Raises:
        UserError: the folder is no diffusers folder, the hub name cannot be fetched, or its transformer belongs to
            no known family.
    """
    folder = _local_folder(str(base))
    name = read_config(folder, "transformer").get("_class_name")
    families = known_families()
    if name not in families:
        known = ", ".join(sorted(families))
        raise UserError(f"{base}: transformer/config.json names {name!r}, which no family here trains. Known: {known}.")
    return families[name](folder, fps)


def known_families() -> dict[str, type[Family]]:
    """Every family, by the class name of its transformer."""
    package = importlib.import_module("vidlit.models.families")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"vidlit.models.families.{module.name}")
    return {family.transformer_class: family for family in _subclasses(Family)}  # type: ignore[type-abstract]


def _subclasses(family: type[Family]) -> list[type[Family]]:
    """All of them: one family may derive from another."""
    return [derived for child in family.__subclasses__() for derived in (child, *_subclasses(child))]


def read_config(base: Path, part: str, file: str = "config.json") -> dict[str, Any]:
    """``config.json`` of one part of a base; schedulers name theirs otherwise, and so does the whole (part ``""``).

    Raises:
        UserError: it is missing or no JSON.
    """
    name = f"{part}/{file}" if part else file
    try:
        config: dict[str, Any] = json.loads((base / name).read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{base} is no complete diffusers folder: cannot read {name} ({error}). A base holds "
            "transformer, vae, text_encoder, tokenizer and scheduler, as save_pretrained writes them."
        ) from error
    return config


def fingerprint(folder: Path) -> str:
    """A short hash of a model folder: its small files whole, of its weights the size and both ends.

    Weights of several gigabytes would take longer to hash than a small dataset takes to encode; a fine-tuned or
    converted file differs at its ends (safetensors keep the header there) or in size.
    """
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}:{size}:".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                file.seek(max(_EDGE_BYTES, size - _EDGE_BYTES))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _local_folder(base: str) -> Path:
    folder = Path(base)
    if folder.is_dir():
        return folder
    if base.count("/") != 1 or base.startswith((".", "/", "~")):
        raise UserError(
            f"Base model folder {base} does not exist. Give a diffusers folder or a hub name (owner/model)."
        )
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(base))
    except (OSError, ValueError) as error:
        raise UserError(
            f"Base model {base} is no local folder, and could not be fetched from the hub: {error}"
        ) from error


def _load(model_class: Any, base: Path, part: str, **kwargs: Any) -> Any:
    try:
        return model_class.from_pretrained(base, subfolder=part, **kwargs)
    except (OSError, ValueError) as error:
        raise UserError(f"{base}/{part} could not be loaded as {model_class.__name__}: {error}") from error
