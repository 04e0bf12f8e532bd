"""What is to be encoded, and how a batch of it becomes items of a store: the same on every engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from vidlit.errors import UserError
from vidlit.latents.encode.decode import DecodedClips, Decoding
from vidlit.latents.encode.device_encoders import DeviceEncoders
from vidlit.latents.encode.shard_writer import ShardWriter
from vidlit.latents.encoding import Encoding, QuarantinedClip
from vidlit.latents.recipe import MASK, LatentRecipe, PromptRecipe, Recipes
from vidlit.latents.store import Item, LatentStore

if TYPE_CHECKING:
    from vidlit.models.encoders import ReadTokens
    from vidlit.video.buckets import Bucket
    from vidlit.video.sources import Clip

_CAPTIONS_PER_BATCH = 16


class Encoders(Protocol):
    """A family's video autoencoder and text encoder, one at a time: captions are all encoded before the first clip."""

    identity: Mapping[str, str]
    """``vae`` and ``text``: names that change whenever the outputs do."""

    def to(self, device: torch.device) -> Self:
        """Move to the device of a rank."""

    def encode_video(self, frames: Tensor, sound: Tensor | None) -> dict[str, Tensor]:
        """Frames (B, F, H, W, 3) uint8 to named tensors, at least normalised ``latents`` (B, C, f, h, w).

        With them goes their sound (B, 2, n), zero where a clip is silent, if the call of
        :func:`vidlit.latents.encode.missing.encode` asks for it.
        """

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Masks (B, F, H, W) uint8 of clips to (B, 1, f, h, w) in [0, 1], of the shape of their latents."""

    def encode_captions(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption its tensors without padding, at least ``prompt_embeds`` (L, D)."""

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """How much of each caption the text encoder reads."""


@dataclass(frozen=True)
class Job:
    """What all who take part in encoding are given, on whatever machine."""

    store: LatentStore
    encoding: Encoding
    decoding: Decoding
    load: Callable[[], Encoders]
    identity: Mapping[str, str]
    """Of the encoders that recipes name."""

    def encoders(self, device: torch.device) -> DeviceEncoders:
        """Loaded, on a device.

        Raises:
            UserError: they are not those that recipes name.
        """
        encoders = self.load().to(device)
        if dict(encoders.identity) != dict(self.identity):
            raise UserError(
                f"the encoders that were loaded are {dict(encoders.identity)}, expected {dict(self.identity)}: "
                "their files changed while this run was starting; run again"
            )
        return DeviceEncoders(encoders, device, self.encoding)

    def writer(self) -> ShardWriter:
        """What makes shards of items."""
        return ShardWriter(self.store, self.encoding)


class Retried(NamedTuple):
    """Clips that are tried again: those that failed for good, and those whose reason may have passed."""

    final: bool
    transient: bool

    def has(self, clip: QuarantinedClip) -> bool:
        """Is this one?"""
        return self.transient if clip.transient else self.final


@dataclass
class Work:
    """Clips and distinct captions, and the rows of them that are to be encoded."""

    clips: Sequence[Clip]
    captions: Sequence[str]
    recipes: Recipes
    todo: list[int] = field(default_factory=list)
    todo_prompts: list[int] = field(default_factory=list)
    num_stored: int = 0

    def latent(self, row: int) -> LatentRecipe:
        """The recipe of a clip."""
        return self.recipes.latent(self.clips[row])

    def prompt(self, row: int) -> PromptRecipe:
        """The recipe of a caption."""
        return self.recipes.prompt(self.captions[row])

    @property
    def is_missing(self) -> bool:
        """Is anything to be encoded?"""
        return bool(self.todo or self.todo_prompts)

    def look(self, store: LatentStore, retried: Retried) -> bool:
        """See what the store lacks; is it anything?"""
        store.storage.refresh()
        stored, stored_prompts = store.keys("latent"), store.keys("prompt")
        skip = stored | {key for key, clip in store.quarantined().items() if not retried.has(clip)}
        rows: dict[str, int] = {}  # the first of each key
        for row in range(len(self.clips)):
            rows.setdefault(self.latent(row).key, row)
        self.todo = sorted((row for key, row in rows.items() if key not in skip), key=self._by_bucket)
        prompts = range(len(self.captions))
        self.todo_prompts = [row for row in prompts if self.prompt(row).key not in stored_prompts]
        self.num_stored = sum(self.latent(row).key in stored for row in range(len(self.clips)))
        return self.is_missing

    def _by_bucket(self, row: int) -> tuple[Bucket, int]:
        return self.clips[row].bucket, row

    def clip_batches(self, encoding: Encoding, *, on_gpu: bool) -> list[list[int]]:
        """Rows in batches of one bucket.

        Args:
            encoding: says how many are in one.
            on_gpu: is that where they are encoded?
        """
        batches: list[list[int]] = []
        for bucket, rows in itertools.groupby(self.todo, key=lambda row: self.clips[row].bucket):
            batches += _chunks(list(rows), encoding.clips_of_batch(bucket, on_gpu=on_gpu))
        return batches

    def caption_batches(self) -> list[list[int]]:
        """Rows of prompts."""
        return _chunks(self.todo_prompts, _CAPTIONS_PER_BATCH)

    def clips_alone(self, rows: Sequence[int]) -> Work:
        """Some of the clips, as work of its own that a process on another machine is given."""
        return Work([self.clips[row] for row in rows], [], self.recipes)

    def encode_clips(self, batch: DecodedClips, on_device: DeviceEncoders) -> list[Item]:
        """Items of decoded clips, and of those that could not be."""
        items = [self._item(row, {}, reason, transient) for row, (reason, transient) in batch.failed.items()]
        if not batch.rows:
            return items
        for row, encoded in zip(batch.rows, on_device.encode_clips(batch.frames, batch.sound), strict=True):
            if encoded is None:
                reason = (
                    f"out of memory on {on_device.device}: one clip of {self.clips[row].bucket} is more than the video "
                    "autoencoder has room for. Choose smaller --data.buckets, or a device with more free memory"
                )
                items.append(self._item(row, {}, reason, transient=True))
                continue
            dtype = self.latent(row).dtype
            stored = {name: _to_store(tensor, dtype) for name, tensor in encoded.items()}
            if row in batch.masks:
                whole = batch.masks[row].expand(batch.frames.shape[1:4])
                stored[MASK] = _to_store(on_device.encoders.encode_masks(whole[None])[0], dtype)
            if all(tensor.isfinite().all() for tensor in stored.values()):
                items.append(self._item(row, stored))
            else:
                items.append(self._item(row, {}, "the video autoencoder gave NaN or infinity"))
        return items

    def _item(self, row: int, tensors: dict[str, Tensor], reason: str = "", transient: bool = False) -> Item:
        clip = self.clips[row]
        source = clip.source
        return Item(self.latent(row), tensors, clip.clip_id, source.video, source.group, reason, transient)


def encode_captions(recipes: Sequence[PromptRecipe], encoders: Encoders) -> list[Item]:
    """Items of captions."""
    captions = [recipe.caption for recipe in recipes]
    prompts, read = encoders.encode_captions(captions), encoders.read_tokens(captions)
    return [
        Item(
            recipe,
            {name: _to_store(tensor, recipe.dtype) for name, tensor in tensors.items()},
            num_cut_tokens=tokens.num_cut,
            kept_tokens=tokens.kept,
        )
        for recipe, tensors, tokens in zip(recipes, prompts, read, strict=True)
    ]


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _to_store(tensor: Tensor, dtype: str) -> Tensor:
    """A copy that shares memory with nothing: safetensors refuses aliases, and a view would keep its batch alive."""
    target = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", target, copy=True, memory_format=torch.contiguous_format)
