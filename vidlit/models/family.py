"""What differs between model families, behind one small interface.

A base is a diffusers folder (``transformer``, ``vae``, ``text_encoder``, ``tokenizer``, ``scheduler``) or a hub name.
Its family follows from the class that ``transformer/config.json`` names. To add a family, add one file to
``families/`` with one :class:`Family` subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.diffusion.batch import take
from vidlit.diffusion.rank_by_noise import ask
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS, Stream, by_stream
from vidlit.errors import UserError
from vidlit.models.base_folder import (
    AUTOENCODER,
    diffusers_class,
    errors_of_base,
    fingerprint,
    fingerprint_of_parts,
    load_part,
    local_folder,
    read_config,
)
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import PromptEncoder, VideoEncoder
from vidlit.models.parts import AudioChoice, Expert, Part, in_order, parts_of, rows_by_call

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from vidlit.diffusion.batch import Conditioning
    from vidlit.diffusion.generate import Scheduler

SoundDecoder = Callable[[Mapping[str, Tensor]], tuple[Tensor, int]]
"""Latents of every stream (B, ...) to sound (B, 2, n) in [-1, 1], and its samples a second."""
_COMPRESSION = ("temporal_compression_ratio", "spatial_compression_ratio"), ("patch_frames", "patch_size")
"""Keys of a VAE's config, diffusers' and the codec's: making a VAE to ask it imports diffusers, which takes seconds."""


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
    clip_parts: ClassVar[tuple[str, ...]] = ("image_encoder", "image_processor", "feature_extractor")
    """Beginnings of the names of the base's folders that make clip extras, beside the VAE: part of their identity."""
    text_parts: ClassVar[tuple[str, ...]] = ("text_encoder", "tokenizer")
    """Beginnings of the names of the base's folders that make prompt embeddings: part of their identity."""

    # What may depend on the base: a subclass states it, or sets it when it has read the base's config.
    experts: tuple[Expert, ...] = (Expert(),)
    """The base's transformers, from the one for most noise to the one for least, which ends at sigma 0."""
    streams: tuple[Stream, ...] = (Stream(),)
    """What is denoised: the picture, then whatever the transformer denoises with it."""
    default_fps: float
    """Frame rate the published weights were trained at."""
    pipeline_class: str
    """diffusers pipeline that users load the results in."""
    prompt_length: int | None = None
    """Length prompts are padded to in a batch; ``None`` (to the longest) where the transformer masks padding."""
    needs_equal_prompts: bool = False
    """The transformer takes no mask and reads every token that it is given: only samples whose prompts are of one
    length may share a call. :meth:`predict` sees to that, and leaves padding out."""
    prompt_recipe: str
    """How captions are tokenised and encoded, in words: part of the identity of prompt embeddings."""
    prompt_extras: tuple[str, ...] = ()
    """Names of further tensors stored with each caption's ``prompt_embeds`` and read into the conditioning."""
    clip_extras: tuple[str, ...] = ()
    """The same of each clip's ``latents``."""
    sample_rate: int | None = None
    """Samples a second of the clips' sound as the video encoder is given it; ``None`` where it needs none."""
    takes_clean_frames: bool = False
    """Whether :meth:`velocity` takes a sigma for each latent frame, so that some can be given clean."""
    reference_pipeline: str = ""
    """diffusers pipeline that gives a reference, where :meth:`velocity` takes one; empty where it takes none."""
    embeds_guidance: bool = False
    """The transformer takes the scale of guidance as an input, ``guidance`` (B,) among the conditioning's extras, and
    is called once a step: a distilled model."""
    clip_recipe: str = ""
    """How clip extras are made, in words: part of the identity of latents where there are any."""
    vae_recipe: str = ""
    """What decides latents beside the VAE, in words: part of their identity; empty where nothing does."""
    idle: str = ""
    """Pattern of what :meth:`velocity` never reaches, matched against whole names of modules and parameters: it is not
    trained, and gets no adapter."""

    split_tokens: Callable[[nn.Module, DeviceMesh], None] | None = None
    """Spreads a transformer's tokens over the ranks of a mesh, in place: context parallel, see
    :mod:`vidlit.training.blocks.context_parallel`. ``None`` where velocities and gradients would not be exact."""

    def __init__(self, base: Path, fps: float | None = None) -> None:
        self.base, self.fps = base, fps or self.default_fps

    def with_sound(self, only: bool) -> Family:
        """The same base with sound among its streams, or as the only one that is trained.

        Raises:
            UserError: it makes none.
        """
        raise UserError(f"{self.base} makes no sound: leave model.audio at off. Of the families here LTX-2 makes some.")

    # -- the transformer

    def load_transformer(self, dtype: torch.dtype = torch.float32, expert: str = "transformer") -> nn.Module:
        """A denoising transformer, ``expert`` of the :attr:`experts`, with the base's weights in a dtype."""
        import diffusers

        return load_part(getattr(diffusers, self.transformer_class), self.base, expert, torch_dtype=dtype)

    def empty_transformer(self, expert: str = "transformer") -> nn.Module:
        """The same structure with fresh weights, on the current device; on ``meta`` without memory for them."""
        import diffusers

        with errors_of_base(self.base / expert, self.transformer_class):
            return getattr(diffusers, self.transformer_class).from_config(read_config(self.base, expert))

    @abstractmethod
    def velocity(
        self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning
    ) -> Tensor | dict[str, Tensor]:
        """The transformer's prediction as a velocity (``noise - latents``).

        What every family keeps to, and ``tests/models/test_every_family.py`` checks:

        - One call of the transformer: sharded weights are gathered once a call, and the operations of a step counted.
        - No value is looked at (``.item()``, ``if`` on a tensor), only shapes: it runs on the ``meta`` device, too.
        - Gradients reach every weight that is not :attr:`idle`; what it is given is not changed in place.
        - A sample's velocity depends on nothing of the others in its batch, nor on padding where
          ``prompt_attention_mask`` is False. Where the transformer cannot be told of padding the family states
          ``prompt_length`` (it has learned to read padding up to there) or ``needs_equal_prompts``.
        - Input comes in float32 and goes to the transformer in its weights' dtype, but for times: bfloat16 rounds them.

        Args:
            transformer: from :meth:`load_transformer`.
            noisy: (B, C, F, H, W).
            sigmas: (B,); or (B, F), one for each latent frame, where the family ``takes_clean_frames``.
            conditioning: of B samples. Further :attr:`streams` are among its extras, as noisy as its ``levels`` (B,)
                say, which are the picture's own in sampling alone.

        Returns:
            (B, C, F, H, W), in any dtype; of a family with several streams a dict with the velocity of each.
        """

    def predict(
        self,
        transformers: Mapping[str, nn.Module],
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
        expert: str | None = None,
    ) -> Tensor | dict[str, Tensor]:
        """The velocity of every sample: what training, validation and sampling call.

        Samples go through :meth:`velocity` together where they may: those of one expert and, where the family
        ``needs_equal_prompts``, of one length of prompt.

        Args:
            transformers: of each of the :attr:`experts`, by name.
            noisy: as for :meth:`velocity`, and so are the others.
            sigmas: a sample belongs to the expert of its noisiest frame.
            conditioning: of B samples.
            expert: name of the one that is asked for all of them; ``None`` for each sample's own.

        Returns:
            (B, C, F, H, W), or of each stream, as :meth:`velocity` gives it.
        """
        if self.prompt_length is None:
            conditioning = conditioning.trimmed()
        only = self.experts[0].name if len(self.experts) == 1 else expert
        if only is not None and not self.needs_equal_prompts:
            return ask(self.velocity, transformers[only], noisy, sigmas, conditioning)
        calls = rows_by_call(self.experts, sigmas, conditioning, only, by_length=self.needs_equal_prompts)
        velocities = []
        for call, rows in calls.items():
            given = take(noisy, rows), take(sigmas, rows), conditioning.of_rows(rows, call.prompt_length)
            velocities.append(by_stream(ask(self.velocity, transformers[call.expert], *given)))
        joined = in_order(list(calls.values()), velocities)
        return joined if len(self.streams) > 1 else joined[LATENTS]

    @property
    def parts(self) -> tuple[Part, ...]:
        """What of the model has a validation curve and a verdict of its own: its experts, or its streams."""
        return parts_of(self.experts, self.streams)

    @abstractmethod
    def load_scheduler(self, num_steps: int, num_tokens: int) -> Scheduler:
        """The base's diffusers scheduler with its timesteps set as the family's pipeline sets them.

        Wrapped where it is not of flow matching: see :class:`vidlit.diffusion.generate.Scheduler`.

        Args:
            num_steps: denoising steps.
            num_tokens: latent positions of one video, which some schedules shift by.
        """

    def noising(self) -> RectifiedFlow:
        """How to draw sigmas where the user says nothing: logit-normal, shifted as the base's sampler, by default."""
        config = read_config(self.base, "scheduler", "scheduler_config.json")
        return RectifiedFlow(shift=float(config.get("flow_shift", config.get("shift", 1.0))))

    # -- latents

    @cached_property
    def compression(self) -> tuple[int, int]:
        """Frames and pixels (each side) that one latent position stands for: by the VAE's config, or the VAE itself."""
        config = read_config(self.base, "vae")
        for temporal, spatial in _COMPRESSION:
            if config.get(temporal) and config.get(spatial):
                return int(config[temporal]), int(config[spatial])
        vae_class, config = self._vae_class()
        with errors_of_base(self.base / "vae", vae_class.__name__), torch.device("meta"):  # no memory for its weights
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

    def stream_shapes(self, num_frames: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """Shapes of one sample in each of the :attr:`streams`, of one video of this size in frames and pixels.

        A family with several streams adds those of the others.
        """
        return {LATENTS: self.latent_shape(num_frames, height, width)}

    @property
    def image_extras(self) -> tuple[str, ...]:
        """The :attr:`clip_extras` that are no stream: what an image-to-video base reads of a clip's first frame."""
        streams = {stream.name for stream in self.streams}
        return tuple(name for name in self.clip_extras if name not in streams)

    def load_vae(self, device: torch.device | str, dtype: torch.dtype | None = None) -> nn.Module:
        """The VAE, frozen and in eval mode; in bfloat16 on a GPU unless told otherwise."""
        vae_class, _ = self._vae_class()
        dtype = dtype or (torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16)
        vae: nn.Module = load_part(vae_class, self.base, "vae", torch_dtype=dtype).to(device)
        return vae.eval().requires_grad_(False)

    @property
    def vae_is_deterministic(self) -> bool:
        """The VAE's posterior is a point: there is nothing to draw latents from."""
        from vidlit.models.codec import PatchDCTCodec

        return bool(read_config(self.base, "vae").get("_class_name") == PatchDCTCodec.__name__)

    def statistics(self, vae: Any) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C,) or () for all channels, to normalise latents by; else a scaling factor."""
        return torch.tensor(0.0), torch.tensor(1 / vae.config.scaling_factor)

    def posterior(self, vae: Any, video: Tensor) -> Any:
        """The VAE's distribution over the latents of videos (B, 3, F, H, W) in [-1, 1], before they are normalised."""
        return vae.encode(video.to(next(vae.parameters()).dtype)).latent_dist

    def encode_video(self, vae: Any, video: Tensor) -> Tensor:
        """Videos (B, 3, F, H, W) in [-1, 1] to latents (B, C, F, H, W), normalised as the transformer expects."""
        return self.normalise(vae, self.posterior(vae, video).mode())

    def normalise(self, vae: Any, raw: Tensor) -> Tensor:
        """The VAE's own latents (B, C, F, H, W) as the transformer expects them: shifted and scaled, in float32."""
        mean, std = (value.view(-1, 1, 1, 1).to(raw.device) for value in self.statistics(vae))
        return (raw.float() - mean) / std

    def normalise_std(self, vae: Any, raw: Tensor) -> Tensor:
        """The standard deviation (B, C, F, H, W) of the VAE's own latents, scaled as they are, but not shifted."""
        _, std = self.statistics(vae)
        return raw.float() / std.view(-1, 1, 1, 1).to(raw.device)

    def denormalise(self, vae: Any, latents: Tensor) -> Tensor:
        """What :meth:`normalise` did to latents (B, C, F, H, W), undone; in the VAE's dtype."""
        mean, std = (value.view(-1, 1, 1, 1).to(latents.device) for value in self.statistics(vae))
        return (latents * std + mean).to(next(vae.parameters()).dtype)

    def draw_latents(self, latents: Tensor, std: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, F, H, W) of the posterior, from its mode, its standard deviation and noise of their shape."""
        return latents.float() + std.float() * noise

    def augment_conditioning(self, conditioning: Conditioning, generators: Sequence[torch.Generator]) -> Conditioning:
        """Conditioning of B samples as the published model's training varies it, with a generator each."""
        return conditioning

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """What makes latents, and clip extras where the family has any; see :class:`VideoEncoder`."""
        return VideoEncoder(self, device, with_std)

    def decode_latents(self, vae: Any, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, F, H, W) to videos (B, 3, F, H, W) in about [-1, 1]."""
        video: Tensor = vae.decode(self.denormalise(vae, latents), return_dict=False)[0]
        return video.float()

    def load_sound_decoder(self, device: torch.device | str) -> SoundDecoder | None:
        """What makes sound of one of the :attr:`streams`; ``None`` where videos are silent."""
        return None

    # -- prompts

    @abstractmethod
    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """Tokenizer and text encoder, ready to encode captions."""

    # -- identity

    @property
    def identity(self) -> dict[str, str]:
        """Fingerprints of what makes latents (``vae``) and prompt embeddings (``text``): change one, re-encode."""
        video = fingerprint(self.base / "vae")
        if self.vae_recipe:
            video = fingerprint_of_parts(self.base, f"{self.vae_recipe}{video}")
        if self.clip_extras:
            recipe = f"{self.clip_recipe}{self.clip_extras}{video}"
            video = fingerprint_of_parts(self.base, recipe, *self.clip_parts)
        return {"vae": video, "text": fingerprint_of_parts(self.base, self.prompt_recipe, *self.text_parts)}

    @property
    def transformer_fingerprint(self) -> str:
        """What tells the base's transformers from others; see :func:`fingerprint`."""
        return "+".join(fingerprint(self.base / expert.name) for expert in self.experts)

    def _vae_class(self) -> tuple[Any, dict[str, Any]]:
        from vidlit.models.codec import PatchDCTCodec

        config = read_config(self.base, "vae")
        if config["_class_name"] == PatchDCTCodec.__name__:
            return PatchDCTCodec, config
        return diffusers_class(self.base, "vae", AUTOENCODER), config


def open_family(base: str | Path, fps: float | None = None, audio: AudioChoice = "off") -> Family:
    """The family of a base folder or hub name.

    Args:
        base: folder or hub name.
        fps: frames a second of the training clips; ``None`` takes the family's own.
        audio: whether sound is denoised with the video, and whether it alone is trained.

    Raises:
        UserError: the folder is no diffusers folder, the hub name cannot be fetched, its transformer belongs to no
            known family, or the family makes no sound and is to make some.
    """
    from vidlit.models.registry import known_families

    folder = local_folder(str(base))
    name = read_config(folder, "transformer").get("_class_name")
    families = known_families()
    if not isinstance(name, str) or name not in families:
        known = ", ".join(sorted(families))
        raise UserError(
            f"{base}: transformer/config.json names {str(name)[:100]!r}, which no family here trains. Known: {known}."
        )
    with errors_of_base(folder, families[name].__name__):
        family = families[name](folder, fps)
        if audio not in ("off", False):
            family = family.with_sound(only=audio == "only")
        family.pixel_multiple, family.latent_channels, family.noising()  # what reads the configs of its parts
    return family
