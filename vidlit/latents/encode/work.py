"""What is to be encoded, and how a batch of it becomes items of a store: the same on every engine."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from vidlit.errors import UserError
from vidlit.latents.encode.decode import DecodedClips, Decoding
from vidlit.latents.encode.shard_writer import ShardWriter
from vidlit.latents.encoding import Encoding, QuarantinedClip
from vidlit.latents.recipe import MASK, LatentRecipe, PromptRecipe, Recipes
from vidlit.latents.store import Item, LatentStore

if TYPE_CHECKING:
    from vidlit.models.encoders import ReadTokens
    from vidlit.video.buckets import Bucket
    from vidlit.video.sources import Clip

_CAPTIONS_PER_BATCH = 16
_MOST_CLIPS, _MOST_BYTES = 8, 2**27
"""Clips that go through a GPU's autoencoder at once, and bytes of their frames, where nobody says otherwise: from there
on it is busy, and loaders hold several such batches."""
_TOO_LARGE = (
    "does not fit into the memory of the encoding device: close what else uses it, or choose smaller buckets "
    "(data.buckets)"
)
_fitting: dict[tuple[int, ...], int] = {}  # frames x height x width -> clips that fitted the device of this process


class Encoders(Protocol):
    """A family's video autoencoder and text encoder. Captions are all encoded before the first clip."""

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

    def encoders(self, device: torch.device) -> Encoders:
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
        return encoders

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

    def clip_batches(self, size: int | Literal["auto"], device: str) -> list[list[int]]:
        """Rows in batches of one bucket.

        Args:
            size: of a batch; ``auto`` for what suits the device.
            device: ``cpu``, ``cuda``, ...
        """
        batches: list[list[int]] = []
        for bucket, rows in itertools.groupby(self.todo, key=lambda row: self.clips[row].bucket):
            batches += _chunks(list(rows), _auto_size(bucket, device) if size == "auto" else size)
        return batches

    def caption_batches(self) -> list[list[int]]:
        """Rows of prompts."""
        return _chunks(self.todo_prompts, _CAPTIONS_PER_BATCH)

    def clips_alone(self, rows: Sequence[int]) -> Work:
        """Some of the clips, as work of its own that a process on another machine is given."""
        return Work([self.clips[row] for row in rows], [], self.recipes)

    def encode_clips(self, batch: DecodedClips, encoders: Encoders) -> list[Item]:
        """Items of decoded clips, and of those that could not be."""
        items = [self._item(row, {}, reason, transient) for row, (reason, transient) in batch.failed.items()]
        if not batch.rows:
            return items
        for place, encoded in _encoded(batch, encoders):
            row = batch.rows[place]
            if encoded is None:
                items.append(self._item(row, {}, _TOO_LARGE, transient=True))
                continue
            dtype = self.latent(row).dtype
            stored = {name: _to_store(tensor, dtype) for name, tensor in encoded.items()}
            if row in batch.masks:
                whole = batch.masks[row].expand(batch.frames.shape[1:4])
                stored[MASK] = _to_store(encoders.encode_masks(whole[None])[0], dtype)
            if all(tensor.isfinite().all() for tensor in stored.values()):
                items.append(self._item(row, stored))
            else:
                items.append(self._item(row, {}, "the video autoencoder gave NaN or infinity"))
        return items

    def _item(self, row: int, tensors: dict[str, Tensor], reason: str = "", transient: bool = False) -> Item:
        clip = self.clips[row]
        source = clip.source
        return Item(self.latent(row), tensors, clip.clip_id, source.video, source.group, reason, transient)


def _encoded(batch: DecodedClips, encoders: Encoders) -> Iterator[tuple[int, dict[str, Tensor] | None]]:
    """Tensors of each clip of a batch, by its place; ``None`` for one that does not even fit into memory alone.

    Where all at once do not fit, half of them are tried, and no more of this resolution from then on.
    """
    size = tuple(batch.frames.shape[1:4])
    waiting = deque([range(len(batch.rows))])
    while waiting:
        places = waiting.popleft()
        most = _fitting.get(size, len(places))
        if len(places) > most:
            waiting.extendleft((places[most:], places[:most]))
            continue
        part = slice(places.start, places.stop)
        encoded = None
        with contextlib.suppress(torch.OutOfMemoryError):
            encoded = encoders.encode_video(batch.frames[part], None if batch.sound is None else batch.sound[part])
        if encoded is not None:
            yield from (
                (place, {name: tensor[k] for name, tensor in encoded.items()}) for k, place in enumerate(places)
            )
            continue
        torch.cuda.empty_cache()  # nothing where there is no GPU
        if len(places) == 1:
            yield places[0], None
        else:
            _fitting[size] = len(places) // 2
            waiting.appendleft(places)


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


def _auto_size(bucket: Bucket, device: str) -> int:
    if device == "cpu":  # one keeps its cores busy, and comes out the same whatever else is encoded: two may not
        return 1
    num_frames, height, width = bucket
    return max(1, min(_MOST_CLIPS, _MOST_BYTES // (num_frames * height * width * 3)))


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _to_store(tensor: Tensor, dtype: str) -> Tensor:
    """A copy that shares memory with nothing: safetensors refuses aliases, and a view would keep its batch alive."""
    target = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", target, copy=True, memory_format=torch.contiguous_format)
