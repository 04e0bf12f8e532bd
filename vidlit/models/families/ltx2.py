"""LTX-2, 2.3 and 2.5 (https://arxiv.org/abs/2601.03233): a video and a sound stream in one transformer.

Here the video stream alone is trained, isolated from the other: the transformer has learned to do without it, which is
the original's way to generate without sound. Both together are in :mod:`vidlit.models.families.ltx2_sound`.
"""

from __future__ import annotations

import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.diffusion.conditions import REFERENCE
from vidlit.diffusion.noising import level_of_sample
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.errors import UserError
from vidlit.models.base_folder import load_part, read_config
from vidlit.models.encoders import PromptEncoder, ReadTokens, count_tokens
from vidlit.models.families.ltx_video import OFFICIAL_SHIFT, LTXVideo, to_tokens

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning
    from vidlit.models.family import Family

PROMPT_TOKENS = 1024
"""Of every prompt: the connectors fill up with learned tokens to this length, and the transformer reads them, too."""
AUDIO_PROMPT_EMBEDS = "audio_prompt_embeds"
"""Prompt extra: what the sound stream reads of a caption."""
GEMMA = {"gemma3": "Gemma3ForConditionalGeneration", "gemma4_unified": "Gemma4UnifiedForConditionalGeneration"}
"""Class of the text encoder by the model type of its config: LTX-2 and 2.3 have the first, 2.5 the second."""


class LTX2(LTXVideo):
    """Lightricks' LTX-2, 2.3 and 2.5, without sound.

    What it has in common with LTX-Video is that family's: latents, a timestep for every token, names of layers.
    """

    transformer_class: ClassVar[str] = "LTX2VideoTransformer3DModel"
    default_fps = 24.0
    pipeline_class = "LTX2Pipeline"
    reference_pipeline = "LTX2InContextPipeline"
    prompt_recipe = f"all of Gemma's hidden states, padded left to {PROMPT_TOKENS}, through the connectors"
    text_parts = ("text_encoder", "tokenizer", "connectors")
    # What only sound or both streams together reach, and the embedding of keyframes, which no pipeline here gives.
    idle = (
        r"(transformer_blocks\.\d+\.)?"
        r"(audio_|av_cross_attn_|video_to_audio_|video_a2v_cross_attn_|keyframes_abs_pos_embedding).*"
    )

    def velocity(
        self, transformer: nn.Module, noisy: Tensor, sigmas: Tensor, conditioning: Conditioning
    ) -> Tensor | dict[str, Tensor]:
        """See :meth:`Family.velocity`: the pipeline's prediction with ``isolate_modalities``.

        The sound stream cannot be left out; isolated, one silent token does, and the video is the same.
        """
        dtype = next(transformer.parameters()).dtype
        silent, unsaid = (noisy.new_zeros(len(noisy), 1, size, dtype=dtype) for size in self._sound_widths)
        levels = level_of_sample(sigmas)
        return self.call(transformer, noisy, sigmas, conditioning, silent, unsaid, levels, isolate_modalities=True)[0]

    def call(
        self,
        transformer: nn.Module,
        noisy: Tensor,
        sigmas: Tensor,
        conditioning: Conditioning,
        sound: Tensor,
        sound_prompt: Tensor,
        sound_sigmas: Tensor,
        *,
        isolate_modalities: bool,
    ) -> tuple[Tensor, Tensor]:
        """Ask the transformer for both streams, as the pipeline does.

        A reference among the conditioning's extras is further tokens without noise, where the video's own are: as
        ``LTX2InContextPipeline`` gives one of the video's size.

        Args:
            transformer: from :meth:`load_transformer`.
            noisy: as for :meth:`velocity`, and so are the next two.
            sigmas: of the video.
            conditioning: of B samples.
            sound: (B, L, D), noisy tokens of sound.
            sound_prompt: (B, tokens, D'), what they read of the prompt.
            sound_sigmas: (B,), their noise level.
            isolate_modalities: neither stream reads the other.

        Returns:
            The velocities of the video (B, C, F, H, W) and of the sound (B, L, D).
        """
        num_frames, height, width = noisy.shape[2:]
        dtype = next(transformer.parameters()).dtype
        reference = conditioning.extras.get(REFERENCE)
        tokens, by_token = to_tokens(noisy, sigmas, reference)
        levels = 1000.0 * level_of_sample(sigmas)
        shapes = [each.shape[2:] for each in (noisy, reference) if each is not None]
        places = [self._coordinates(transformer, (len(noisy), *each), noisy.device) for each in shapes]
        predicted, heard = transformer(
            hidden_states=tokens.to(dtype),
            audio_hidden_states=sound.to(dtype),
            encoder_hidden_states=conditioning.prompt_embeds.to(dtype),
            audio_encoder_hidden_states=sound_prompt.to(dtype),
            timestep=1000.0 * by_token,
            audio_timestep=1000.0 * sound_sigmas,
            sigma=levels,
            audio_sigma=1000.0 * sound_sigmas,
            num_frames=num_frames,
            height=height,
            width=width,
            fps=self.fps,
            video_coords=torch.cat(places, dim=2),
            audio_num_frames=sound.shape[1],
            isolate_modalities=isolate_modalities,
            use_cross_timestep=True,  # as the pipelines of all versions; the transformer's own default is LTX-2.0's
            return_dict=False,
        )
        picture = predicted[:, : num_frames * height * width]
        return picture.transpose(1, 2).reshape(noisy.shape), heard

    def _coordinates(self, transformer: nn.Module, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Where the tokens of latents are, as the transformer reckons it, made once: it waits for the device twice."""
        if (shape, device) not in self._made:
            rope: Any = transformer.rope
            self._made[shape, device] = rope.prepare_video_coords(*shape, device, self.fps)
        return self._made[shape, device]

    @cached_property
    def _made(self) -> dict[tuple[tuple[int, ...], torch.device], Tensor]:
        return {}

    @cached_property
    def _sound_widths(self) -> tuple[int, int]:
        """Of a token of sound, and of one of the prompt that goes with it."""
        config = read_config(self.base, "transformer")
        # LTX-2 projects prompts in the transformer, later ones in the connectors.
        prompt = "caption_channels" if config.get("use_prompt_embeddings", True) else "audio_cross_attention_dim"
        return int(config["audio_in_channels"]), int(config[prompt])

    def noising(self) -> RectifiedFlow:
        """As the official trainer draws sigmas, of distilled bases, too: its default, whatever the scheduler states.

        https://github.com/Lightricks/LTX-2, ``packages/ltx-trainer``, ``timestep_samplers.py``.
        """
        return RectifiedFlow(shift=OFFICIAL_SHIFT, stretch=(0.005, 0.999), uniform_share=0.1)

    def load_prompt_encoder(self, device: torch.device | str) -> PromptEncoder:
        """Gemma and the connectors, which take no part in training."""
        return GemmaPromptEncoder(self, device)

    def with_sound(self, only: bool) -> Family:
        """See :meth:`Family.with_sound`."""
        from vidlit.models.families.ltx2_sound import LTX2Sound, LTX2SoundAlone

        return (LTX2SoundAlone if only else LTX2Sound)(self.base, self.fps)


class GemmaPromptEncoder(PromptEncoder):
    """A base's ``tokenizer``, Gemma ``text_encoder`` and ``connectors``.

    What is kept of a caption is what comes out of the connectors, a fiftieth of Gemma's hidden states in bytes.

    Args:
        family: of the base; with ``audio_prompt_embeds`` among its ``prompt_extras`` the sound stream's are kept, too.
        device: to encode on.

    Raises:
        UserError: the text encoder is no Gemma that this family knows.
    """

    def __init__(self, family: Family, device: torch.device | str) -> None:
        import transformers
        from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
        from transformers.utils import logging

        if not sys.stderr.isatty():
            logging.disable_progress_bar()
        kind = read_config(family.base, "text_encoder").get("model_type")
        if kind not in GEMMA:
            raise UserError(
                f"{family.base}/text_encoder/config.json names the model type {str(kind)[:100]!r}; the text encoder of "
                f"LTX-2 is one of {', '.join(GEMMA)}."
            )
        dtype = torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16
        self.tokenizer = load_part(transformers.AutoTokenizer, family.base, "tokenizer")
        self.tokenizer.padding_side = "left"
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        encoder = load_part(getattr(transformers, GEMMA[kind]), family.base, "text_encoder", dtype=dtype)
        self.encoder = encoder.to(device).eval().requires_grad_(False)
        connectors = load_part(LTX2TextConnectors, family.base, "connectors", torch_dtype=dtype)
        self.connectors = connectors.to(device).eval().requires_grad_(False)
        self.with_audio = AUDIO_PROMPT_EMBEDS in family.prompt_extras

    def __call__(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """``prompt_embeds`` (1024, D) of each caption, and ``audio_prompt_embeds`` (1024, D') where they are kept."""
        # One at a time: the hidden states of one caption take 385 MB.
        return [self._encode(caption) for caption in captions]

    @torch.no_grad()
    def _encode(self, caption: str) -> dict[str, Tensor]:
        tokens = self.tokenizer(
            [caption.strip()],
            padding="max_length",
            truncation=True,
            max_length=PROMPT_TOKENS,
            return_tensors="pt",
        ).to(self.encoder.device)
        # Without the head: logits of 1024 tokens over the whole vocabulary are another gigabyte.
        made = self.encoder.model(
            input_ids=tokens.input_ids,
            attention_mask=tokens.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        )
        states = torch.stack(made.hidden_states, dim=-1).flatten(2, 3)
        video, audio, _ = self.connectors(states, tokens.attention_mask, padding_side="left")
        kept = {"prompt_embeds": video, AUDIO_PROMPT_EMBEDS: audio} if self.with_audio else {"prompt_embeds": video}
        return {name: embeds[0].float().cpu() for name, embeds in kept.items()}

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """See :meth:`PromptEncoder.read_tokens`."""
        return count_tokens(self.tokenizer, [caption.strip() for caption in captions], PROMPT_TOKENS)
