"""LTX-2 with sound: both streams denoised together, each reading the other, each with noise levels of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.diffusion.streams import LATENTS, Stream
from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.comfyui import Layers
from vidlit.models.encoders import VideoEncoder
from vidlit.models.families.log_mel import HOP, SAMPLE_RATE, SHORTEST, SOUND_PREPROCESSING, log_mel
from vidlit.models.families.ltx2 import AUDIO_PROMPT_EMBEDS, LTX2
from vidlit.models.parts import Part

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.models.family import SoundDecoder

AUDIO = "audio_latents"
HAS_SOUND = "has_sound"
"""Clip extra (B, 1): 0 where a clip is silent, which says nothing of how it sounds."""
LOUDEST_SILENCE = 2**-16
"""Half a step of 16 bits: codecs such as AC-3 decode a silent track to noise far below it, not to zeros."""
MEL_FRAMES = 4
"""Frames of the spectrogram for each latent: ``temporal_compression_ratio`` of every LTX-2 audio autoencoder."""
VOCODERS = ("LTX2Vocoder", "LTX2VocoderWithBWE")
"""LTX-2.0's, and that of later ones."""

_AUDIO_WEIGHTS = r"\b(audio_(?!to_video_)|video_to_audio_|av_cross_attn_audio_)"  # what changes the sound stream
_ATTENTION = r"(to_q|to_k|to_v|to_out\.0)"


class LTX2Sound(LTX2):
    """LTX-2, 2.3 and 2.5 with sound: the pipeline's joint prediction."""

    lora_targets: ClassVar[str] = rf"transformer_blocks\.\d+\.\w*attn\d?\.{_ATTENTION}"
    comfyui_layers: ClassVar[Layers] = {
        **LTX2.comfyui_layers,
        **{
            layer: (layer,)
            for layer in (
                *(
                    f"transformer_blocks.{{}}.{attention}.to_{part}"
                    for attention in ("audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
                    for part in ("q", "k", "v", "out.0")
                ),
                *(f"transformer_blocks.{{}}.audio_ff.net.{part}" for part in ("0.proj", "2")),
            )
        },
    }
    clip_parts = ("audio_vae",)
    streams = (Stream(title="video"), Stream(AUDIO, title="audio", weights=_AUDIO_WEIGHTS, marker=HAS_SOUND))
    sample_rate = SAMPLE_RATE
    prompt_recipe = f"{LTX2.prompt_recipe}, for both streams"
    prompt_extras = (AUDIO_PROMPT_EMBEDS,)
    clip_extras = (AUDIO, HAS_SOUND)
    clip_recipe = f"mode of the audio VAE of {SOUND_PREPROCESSING}, cut to the pipeline's length"
    idle = "keyframes_abs_pos_embedding"  # no pipeline here gives any

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """See :meth:`Family.latent_shape`.

        Raises:
            UserError: a clip is too short to be heard.
        """
        if num_frames / self.fps * SAMPLE_RATE < SHORTEST:
            raise UserError(
                f"a clip of {num_frames} frames at {self.fps:g} a second is too short for sound: it takes "
                f"{SHORTEST / SAMPLE_RATE:g} seconds at least. Leave such buckets out, or model.audio at off."
            )
        return super().latent_shape(num_frames, height, width)

    def stream_shapes(self, num_frames: int, height: int, width: int) -> dict[str, tuple[int, ...]]:
        """See :meth:`Family.stream_shapes`; of sound (D, L), its tokens side by side."""
        width_of_token = int(read_config(self.base, "transformer")["audio_in_channels"])
        shapes = super().stream_shapes(num_frames, height, width)
        return shapes | {AUDIO: (width_of_token, self.num_audio_latents(num_frames))}

    def num_audio_latents(self, num_frames: int) -> int:
        """As many as the pipeline makes: 25 a second."""
        return max(1, round(num_frames / self.fps * SAMPLE_RATE / HOP / MEL_FRAMES))

    @property
    def image_extras(self) -> tuple[str, ...]:
        """None: what is stored beside the latents is the sound."""
        return ()

    def velocity(
        self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning
    ) -> dict[str, Tensor]:
        """See :meth:`Family.velocity`: the pipeline's prediction."""
        extras = conditioning.extras
        sound, prompt, levels = extras[AUDIO].transpose(1, 2), extras[AUDIO_PROMPT_EMBEDS], conditioning.levels[AUDIO]
        video, heard = self.call(
            transformer, noisy, sigmas, conditioning, sound, prompt, levels, isolate_modalities=False
        )
        return {LATENTS: video, AUDIO: heard.transpose(1, 2)}

    def load_video_encoder(self, device: torch.device | str, with_std: bool = False) -> VideoEncoder:
        """See :meth:`Family.load_video_encoder`."""
        return SoundEncoder(self, device, with_std)

    def load_audio_vae(self, device: torch.device | str) -> Any:
        """The audio autoencoder, frozen and in eval mode; in float32, as the original's, for quality."""
        import diffusers

        vae = load_part(diffusers.AutoencoderKLLTX2Audio, self.base, "audio_vae", torch_dtype=torch.float32)
        return vae.to(device).eval().requires_grad_(False)

    def load_sound_decoder(self, device: torch.device | str) -> SoundDecoder:
        """See :meth:`Family.load_sound_decoder`: the audio autoencoder and the vocoder.

        Raises:
            UserError: the base's vocoder is of no known kind.
        """
        from diffusers.pipelines.ltx2 import vocoder as vocoders

        kind = read_config(self.base, "vocoder").get("_class_name")
        if kind not in VOCODERS:
            raise UserError(
                f"{self.base}/vocoder/config.json names {str(kind)[:100]!r}; it must be one of {', '.join(VOCODERS)}."
            )
        vae = self.load_audio_vae(device)
        vocoder = load_part(getattr(vocoders, kind), self.base, "vocoder", torch_dtype=torch.float32)
        vocoder = vocoder.to(device).eval().requires_grad_(False)
        num_bins = vae.config.mel_bins // vae.mel_compression_ratio

        @torch.no_grad()
        def decode(streams: Mapping[str, Tensor]) -> tuple[Tensor, int]:
            tokens = streams[AUDIO].float().transpose(1, 2) * vae.latents_std + vae.latents_mean
            latents = tokens.reshape(*tokens.shape[:2], -1, num_bins).transpose(1, 2)
            mels = vae.decode(latents, return_dict=False)[0]
            return vocoder(mels), int(vocoder.config.output_sampling_rate)

        return decode


class LTX2SoundAlone(LTX2Sound):
    """Only the sound is trained: the video is denoised with it, and has neither a loss nor layers that move."""

    lora_targets: ClassVar[str] = rf"transformer_blocks\.\d+\.(audio_attn[12]|video_to_audio_attn)\.{_ATTENTION}"
    idle = rf"(?!.*{_AUDIO_WEIGHTS}).*"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The sound."""
        return super().parts[1:]


class SoundEncoder(VideoEncoder):
    """Latents of the sound beside those of the video, and whether there is any.

    Args:
        family: of the base.
        device: to encode on.
        with_std: see :class:`VideoEncoder`.
    """

    family: LTX2Sound

    def __init__(self, family: LTX2Sound, device: torch.device | str, with_std: bool = False) -> None:
        super().__init__(family, device, with_std)
        self.audio_vae = family.load_audio_vae(device)

    def encode_sound(self, sound: Tensor, num_frames: int) -> dict[str, Tensor]:
        """``audio_latents`` (B, D, L) and ``has_sound`` (B, 1); a track that 16 bits would round to zeros is none.

        The autoencoder may give one latent more than the pipeline makes of clips of this length: it is cut off.
        """
        mels = log_mel(sound, self.audio_vae.config.mel_bins)
        latents = self.audio_vae.encode(mels).latent_dist.mode()
        tokens = latents.transpose(1, 2).flatten(2)[:, : self.family.num_audio_latents(num_frames)]
        normalised = (tokens - self.audio_vae.latents_mean) / self.audio_vae.latents_std
        heard = (sound.abs() > LOUDEST_SILENCE).flatten(1).any(dim=1, keepdim=True)
        return {AUDIO: normalised.transpose(1, 2), HAS_SOUND: heard}
