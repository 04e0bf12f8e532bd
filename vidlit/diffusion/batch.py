"""What a training step receives: video latents of one resolution, and what the transformer reads beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vidlit.diffusion.conditions import REFERENCE, GivenFrames
from vidlit.diffusion.streams import LATENTS


class Conditioning(NamedTuple):
    """Everything that a transformer reads beside noisy latents and noise level."""

    prompt_embeds: Tensor
    """(B, L, D), zero where the mask is False"""
    prompt_attention_mask: Tensor | None
    """(B, L) bool on the CPU, where it is read without waiting for a device; ``None`` where no prompt is padded"""
    extras: dict[str, Tensor]
    """a family's own tensors, each (B, ...), named by its ``prompt_extras`` and ``clip_extras``; a stream among them is
    clean in a batch, and noisy where a model is given it"""
    levels: Mapping[str, Tensor] = {}
    """noise levels (B,) of the streams among the extras where a model is given these noisy, by name"""

    @classmethod
    def of(cls, captions: Sequence[Mapping[str, Tensor]], prompt_length: int | None = None) -> Self:
        """Stack encoded captions and pad them.

        Args:
            captions: of each the tensors that a prompt encoder makes: ``prompt_embeds`` (L, D) and extras.
            prompt_length: length to pad prompts to or cut them at; ``None`` pads to the longest. Families whose
                transformer takes no mask were trained at one fixed length and need it.
        """
        prompts = [caption["prompt_embeds"] for caption in captions]
        length = prompt_length or max(len(prompt) for prompt in prompts)
        prompt_embeds = prompts[0].new_zeros(len(prompts), length, prompts[0].shape[1])
        mask = torch.zeros(len(prompts), length, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            used = min(len(prompt), length)
            prompt_embeds[row, :used] = prompt[:used]
            mask[row, :used] = True
        names = [name for name in captions[0] if name != "prompt_embeds"]
        extras = {name: torch.stack([caption[name] for caption in captions]) for name in names}
        return cls(prompt_embeds, mask_of(mask), extras)

    @property
    def prompt_lengths(self) -> list[int]:
        """Tokens of each prompt, without padding."""
        if self.prompt_attention_mask is None:
            return [self.prompt_embeds.shape[1]] * len(self.prompt_embeds)
        return [int(length) for length in self.prompt_attention_mask.sum(dim=1).tolist()]

    def mask_for(self, device: torch.device, dtype: torch.dtype) -> Tensor | None:
        """The mask (B, L) as a transformer takes it; ``None`` where no prompt is padded."""
        mask = self.prompt_attention_mask
        return None if mask is None else mask.to(device, dtype, non_blocking=True)

    def trimmed(self) -> Self:
        """Without the padding that all prompts share."""
        length = max(self.prompt_lengths)
        if length == self.prompt_embeds.shape[1]:
            return self
        mask = self.prompt_attention_mask
        return self._replace(
            prompt_embeds=self.prompt_embeds[:, :length],
            prompt_attention_mask=None if mask is None else mask_of(mask[:, :length]),
        )

    @property
    def num_given(self) -> int:
        """Latent positions of a reference, which schedules that depend on the size count, too."""
        return self.extras[REFERENCE][0, 0].numel() if REFERENCE in self.extras else 0

    def to(self, device: torch.device | str) -> Self:
        """The same on another device, but for the mask."""
        extras = {name: value.to(device, non_blocking=True) for name, value in self.extras.items()}
        return self._replace(
            prompt_embeds=self.prompt_embeds.to(device, non_blocking=True),
            extras=extras,
        )

    def of_rows(self, rows: Sequence[int], prompt_length: int | None = None) -> Self:
        """Of some of the samples.

        Args:
            rows: of the batch.
            prompt_length: tokens to keep of their prompts; ``None`` keeps all, padding too.
        """
        mask = self.prompt_attention_mask
        return self._replace(
            prompt_embeds=take(self.prompt_embeds, rows)[:, :prompt_length],
            prompt_attention_mask=None if mask is None else mask_of(take(mask, rows)[:, :prompt_length]),
            extras={name: take(value, rows) for name, value in self.extras.items()},
            levels={name: take(value, rows) for name, value in self.levels.items()},
        )

    def with_streams(self, noisy: Mapping[str, Tensor], levels: Mapping[str, Tensor]) -> Self:
        """With further streams (B, ...) as noisy as these levels (B,) say; itself where there are none."""
        return self.with_extras(noisy)._replace(levels=dict(levels)) if noisy else self

    def with_extras(self, extras: Mapping[str, Tensor]) -> Self:
        """With these tensors (B, ...), in place of others of the same names; itself where there are none."""
        return self._replace(extras={**self.extras, **extras}) if extras else self

    def expand(self, batch_size: int) -> Self:
        """Of one sample, the same for each of a batch."""
        extras = {name: value.expand(batch_size, *value.shape[1:]) for name, value in self.extras.items()}
        mask = self.prompt_attention_mask
        return self._replace(
            prompt_embeds=self.prompt_embeds.expand(batch_size, -1, -1),
            prompt_attention_mask=None if mask is None else mask.expand(batch_size, -1),
            extras=extras,
        )

    def instead_of(self, other: Self) -> Self:
        """This prompt, of one sample, for each of another's: what belongs to a clip and not to its prompt stays."""
        prompt = self.expand(len(other.prompt_embeds))
        return prompt._replace(extras={**other.extras, **prompt.extras})


class LatentSample(NamedTuple):
    """One clip, encoded: what a dataset returns."""

    latents: Tensor
    """(C, F, H, W)"""
    prompt_embeds: Tensor
    """(L, D), without padding"""
    row: int
    """Row of the clip in its split's clip table."""
    key: int
    """:func:`clip_key` of the clip."""
    extras: Mapping[str, Tensor] = {}
    """a family's own tensors"""
    weights: Tensor | None = None
    """(1, F, H, W), of a clip with a mask"""


class LatentBatch(NamedTuple):
    """Clips of one resolution. A NamedTuple, because Lightning moves and pins those and not dataclasses."""

    latents: Tensor
    """(B, C, F, H, W)"""
    conditioning: Conditioning
    """what the transformer reads beside the noisy latents"""
    indices: Tensor
    """(B,) int64 on the CPU, rows of the split's clip table"""
    keys: Tensor
    """(B,) int64 on the CPU, :func:`clip_key` of each clip: seeds the noise of paired validation"""
    weights: Tensor | None = None
    """(B, 1, F, H, W) float32, what each place of the picture counts in the loss: the clips' masks. ``None`` where all
    count alike"""

    def stream(self, name: str) -> Tensor:
        """Clean latents (B, ...) of one of the family's streams."""
        return self.latents if name == LATENTS else self.conditioning.extras[name]

    def has(self, marker: str) -> Tensor:
        """Which clips (B,) bool have what a clip extra marks, such as a sound; all, where it has no name."""
        if not marker:
            return torch.ones(len(self.latents), dtype=torch.bool, device=self.latents.device)
        return self.conditioning.extras[marker][:, 0] > 0

    def to(self, device: torch.device | str) -> Self:
        """What the transformer reads, on a device; the rows and keys stay where the CPU reads them without waiting.

        Lightning moves a batch by its own method, where it has one.
        """
        latents = self.latents.to(device, non_blocking=True)
        weights = None if self.weights is None else self.weights.to(device, non_blocking=True)
        return self._replace(latents=latents, conditioning=self.conditioning.to(device), weights=weights)


class PromptBatch(NamedTuple):
    """Prompts of one size to sample: what a prediction step receives."""

    conditioning: Conditioning
    """of B prompts"""
    null_conditioning: Conditioning | None
    """of the negative prompt, for one sample; ``None`` without guidance"""
    given: GivenFrames | None
    """latent frames to start from, for families that take some; ``None`` to start from noise alone"""
    seeds: list[int]
    numbers: list[int]
    """places in the list of prompts; with the seeds they key the start noise"""
    size: tuple[int, ...]
    """frames, height and width in pixels"""
    num_steps: int
    guidance_scale: float
    is_repeat: bool
    """made only so that all ranks take as many steps"""


def mask_of(mask: Tensor) -> Tensor | None:
    """A mask of prompts (B, L) bool on the CPU; ``None`` where it leaves nothing out: attention is faster without."""
    return None if bool(mask.all()) else mask


def take(values: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a tensor (B, ...): by slices, as a list of numbers would have to be copied to its device."""
    return values if list(rows) == list(range(len(values))) else torch.stack([values[row] for row in rows])


def clip_key(clip_id: str) -> int:
    """A 63-bit hash of a clip's name, the same on every machine and in every run."""
    return int.from_bytes(hashlib.blake2b(clip_id.encode(), digest_size=8).digest(), "big") >> 1


def as_is(batch: Any) -> Any:
    """What is a batch already stays as it is: for loaders, whose default would walk through it."""
    return batch


def collate(samples: Sequence[LatentSample], prompt_length: int | None = None) -> LatentBatch:
    """Stack clips of one resolution and pad their prompts; see :meth:`Conditioning.of`."""
    captions = [{"prompt_embeds": sample.prompt_embeds, **sample.extras} for sample in samples]
    weights = None
    if any(sample.weights is not None for sample in samples):
        alike = torch.ones(1, *samples[0].latents.shape[1:])
        weights = torch.stack([alike if sample.weights is None else sample.weights for sample in samples])
    return LatentBatch(
        latents=torch.stack([sample.latents for sample in samples]),
        conditioning=Conditioning.of(captions, prompt_length),
        indices=torch.tensor([sample.row for sample in samples], dtype=torch.int64),
        keys=torch.tensor([sample.key for sample in samples], dtype=torch.int64),
        weights=weights,
    )
