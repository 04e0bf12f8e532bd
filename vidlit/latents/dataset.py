"""Stored clips by row: what a DataLoader reads while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from vidlit.diffusion.batch import Conditioning, LatentBatch, LatentSample, clip_key, mask_of
from vidlit.diffusion.conditions import REFERENCE
from vidlit.diffusion.loss_weights import loss_weights
from vidlit.errors import UserError
from vidlit.latents.batch_memory import Block, Layout
from vidlit.latents.recipe import MASK, Recipes
from vidlit.latents.shards import RowRead, TensorTable, read_rows
from vidlit.latents.store import LatentStore

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

_WEIGHTS = "weights"  # name of the masks' part of a packed batch


class LatentDataset(Dataset[LatentSample]):
    """Map-style dataset over clips of a store: 82 bytes a clip in memory, one read for latents, one for the prompt.

    Tensors come in the dtype they were stored in (bfloat16 unless the store was written otherwise).

    Args:
        store: where the clips are.
        clip_ids: stable name of each row's clip.
        latent_keys: key of each row's latents.
        prompt_keys: key of each row's prompt embeddings.
        clip_extras: names of further tensors stored with the latents.
        prompt_extras: names of further tensors stored with the prompt embeddings.
        rows: row of the clip table that each belongs to; ``None`` where that is its place.
        masked: rows whose clips have a mask; where there are any, batches have weights.
        unmasked_weight: what a place counts that a mask leaves out.
        reference_keys: key of the latents of each row's reference; ``None`` where there are none.

    Raises:
        KeyError: a key is not stored; :meth:`from_clips` says why in words.
    """

    def __init__(
        self,
        store: LatentStore,
        clip_ids: Sequence[str],
        latent_keys: Sequence[str],
        prompt_keys: Sequence[str],
        clip_extras: Sequence[str] = (),
        prompt_extras: Sequence[str] = (),
        rows: Sequence[int] | None = None,
        masked: Sequence[int] = (),
        unmasked_weight: float = 1.0,
        reference_keys: Sequence[str] | None = None,
    ) -> None:
        self._latents = store.locate("latent", "latents", latent_keys)
        self._prompts = store.locate("prompt", "prompt_embeds", prompt_keys)
        self._extras = {name: store.locate("prompt", name, prompt_keys) for name in prompt_extras}
        self._extras |= {name: store.locate("latent", name, latent_keys) for name in clip_extras}
        if reference_keys is not None:
            self._extras[REFERENCE] = store.locate("latent", "latents", reference_keys)
        self._masks = store.locate("latent", MASK, [latent_keys[row] for row in masked]) if masked else None
        self._place_of_mask = {row: place for place, row in enumerate(masked)}
        self._unmasked_weight = unmasked_weight
        prompts = {(len(shape), shape[-1:], dtype) for shape, dtype in self._prompts.layouts}
        if len(prompts) > 1 or {2, *(len(shape) for shape, _ in self._prompts.layouts)} != {2}:
            raise UserError(f"the index of {store.storage} gives prompts of several kinds: use another store folder")
        self.keys = np.fromiter((clip_key(clip_id) for clip_id in clip_ids), np.int64, len(clip_ids))
        self.rows = np.arange(len(clip_ids)) if rows is None else np.array(rows, np.int64)

    @classmethod
    def from_clips(
        cls,
        store: LatentStore,
        clips: Sequence[Clip],
        recipes: Recipes,
        clip_extras: Sequence[str] = (),
        prompt_extras: Sequence[str] = (),
        rows: Sequence[int] | None = None,
        unmasked_weight: float = 1.0,
    ) -> LatentDataset:
        """Rows in the order of ``clips``, as the encoders that recipes name would encode them.

        Where clips have references, batches have these, too.

        Args:
            store: where the clips are.
            clips: of each row.
            recipes: of clips and captions.
            clip_extras: names of further tensors stored with the latents.
            prompt_extras: names of further tensors stored with the prompt embeddings.
            rows: row of the clip table that each belongs to; ``None`` where that is its place.
            unmasked_weight: what a place counts that a clip's mask leaves out.

        Raises:
            UserError: something is not stored; names what differs from what is.
        """
        latents = [recipes.latent(clip) for clip in clips]
        prompts = [recipes.prompt(clip.source.caption) for clip in clips]
        given = [recipes.latent(each) for clip in clips if (each := clip.reference()) is not None]
        store.require([*latents, *given])
        store.require(prompts)
        ids = [clip.clip_id for clip in clips]
        latent_keys, prompt_keys = [recipe.key for recipe in latents], [recipe.key for recipe in prompts]
        masked = [row for row, clip in enumerate(clips) if clip.source.mask is not None]
        reference_keys = [recipe.key for recipe in given] or None  # all clips of a folder have one, or none has
        names = clip_extras, prompt_extras
        return cls(
            store, ids, latent_keys, prompt_keys, *names, rows, masked, unmasked_weight, reference_keys=reference_keys
        )

    def __len__(self) -> int:
        return len(self._latents)

    def __getitem__(self, index: int) -> LatentSample:
        return LatentSample(
            latents=self._latents.read(index),
            prompt_embeds=self._prompts.read(index),
            row=int(self.rows[index]),
            key=int(self.keys[index]),
            extras={name: table.read(index) for name, table in self._extras.items()},
            weights=self._weights(index),
        )

    def _weights(self, row: int) -> Tensor | None:
        """(1, F, H, W) of a clip with a mask."""
        if self._masks is None or row not in self._place_of_mask:
            return None
        return loss_weights(self._masks.read(self._place_of_mask[row]), self._unmasked_weight)

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """(C, F, H, W) of a row, without reading it."""
        return self._latents.layout(index)[0]

    def read_batch(self, rows: Sequence[int], prompt_length: int | None = None) -> LatentBatch:
        """Rows of one resolution, read straight into the batch: what :func:`vidlit.diffusion.batch.collate` makes.

        Args:
            rows: rows of clips whose latents have one shape.
            prompt_length: length to pad prompts to or cut them at; ``None`` pads to the longest of the batch.

        Raises:
            UserError: the clips are of several resolutions, or a shard was damaged.
        """
        return self._pack(rows, prompt_length).unpack()

    def _pack(self, rows: Sequence[int], prompt_length: int | None) -> _Packed:
        # At most a few microseconds each: what is done here for a batch is compared with bare reads of its bytes.
        latents, layout = _places(self._latents, rows)
        prompts = self._prompts.places[rows].tolist()
        (_, width), dtype = self._prompts.layouts[prompts[0][2]]
        lengths = [self._prompts.layouts[place[2]][0][0] for place in prompts]
        length = prompt_length or max(lengths)
        extras = [(table, *_places(table, rows)) for table in self._extras.values()]
        layouts = [layout, ((len(rows), length, width), dtype), *(layout for _, _, layout in extras)]
        if self._masks is not None:
            layouts.append(((len(rows), 1, *layout[0][2:]), torch.float32))
        block = Block(layouts)
        parts = block.parts()
        token = width * dtype.itemsize
        wanted = []
        for row, place, tokens, part in zip(rows, prompts, lengths, _split(parts[1], len(rows)), strict=True):
            wanted.append(RowRead(self._prompts, row, place, part[: token * tokens]))
            if tokens < length:
                np.frombuffer(part[token * tokens :], np.uint8).fill(0)
        stacked = [(self._latents, latents, layout), *extras]
        wholes = [parts[0], *parts[2 : 2 + len(extras)]]
        for (table, places, _), whole in zip(stacked, wholes, strict=True):
            split = _split(whole, len(rows))
            wanted += [RowRead(table, *each) for each in zip(rows, places, split, strict=True)]
        read_rows(wanted)
        names = tuple(self._extras)
        if self._masks is not None:
            names = (*names, _WEIGHTS)
            for row, part in zip(rows, _split(parts[-1], len(rows)), strict=True):
                weights = self._weights(row)
                np.frombuffer(part, np.float32)[:] = 1 if weights is None else weights.flatten().numpy()
        return _Packed(block, names, lengths, self.rows[rows].tolist(), self.keys[rows])

    def batches(self, prompt_length: int | None = None) -> LatentBatches:
        """The same clips by lists of rows, for ``DataLoader(..., sampler=lists_of_rows, batch_size=None)``."""
        return LatentBatches(self, prompt_length)


def _places(table: TensorTable, rows: Sequence[int]) -> tuple[list[list[int]], Layout]:
    """Where tensors of one shape lie, and the layout of all of them stacked."""
    places: list[list[int]] = table.places[rows].tolist()
    layout = places[0][2]
    for row, place in zip(rows, places, strict=True):
        if place[2] != layout:
            raise UserError(f"rows {rows[0]} and {row} of one batch differ in resolution: batch by bucket")
    shape, dtype = table.layouts[layout]
    return places, ((len(rows), *shape), dtype)


def _split(memory: memoryview, count: int) -> list[memoryview]:
    size = len(memory) // count
    return [memory[start : start + size] for start in range(0, len(memory), size)]


@dataclass(frozen=True, slots=True)
class _Packed:
    """A batch with its large tensors in one block, which makes one message of it on its way out of a worker."""

    block: Block
    extras: tuple[str, ...]
    lengths: list[int]
    rows: list[int]
    keys: NDArray[np.int64]

    def unpack(self) -> LatentBatch:
        latents, embeds, *extras = self.block.tensors()
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool)
        for row, tokens in enumerate(self.lengths):
            if tokens < embeds.shape[1]:
                mask[row, tokens:] = False
        named = dict(zip(self.extras, extras, strict=True))
        weights = named.pop(_WEIGHTS, None)
        conditioning = Conditioning(embeds, mask_of(mask), named)
        return LatentBatch(latents, conditioning, torch.tensor(self.rows), torch.from_numpy(self.keys), weights)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpack, (self.block, self.extras, self.lengths, self.rows, self.keys)


def _unpack(*fields: Any) -> LatentBatch:
    return _Packed(*fields).unpack()


class LatentBatches(Dataset[LatentBatch]):
    """Map-style dataset whose index is a list of rows, as a batch sampler yields them; see :meth:`read_batch`."""

    def __init__(self, dataset: LatentDataset, prompt_length: int | None = None) -> None:
        self.dataset, self.prompt_length = dataset, prompt_length

    def __getitem__(self, rows: Sequence[int]) -> LatentBatch:
        packed = self.dataset._pack(rows, self.prompt_length)
        if get_worker_info() is None:
            return packed.unpack()
        return packed  # type: ignore[return-value]  # pickled on its way, and unpacked where it arrives
