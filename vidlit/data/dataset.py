"""Stored clips by row: what a DataLoader reads while training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidlit.data.batch import Conditioning, LatentBatch, LatentSample, clip_key
from vidlit.data.recipe import LatentRecipe, PromptRecipe
from vidlit.data.shards import TensorTable, as_bytes, batch_memory
from vidlit.data.store import LatentStore
from vidlit.data.video import BLACK, Color
from vidlit.errors import UserError

if TYPE_CHECKING:
    from vidlit.data.clips import Clip


class LatentDataset(Dataset[LatentSample]):
    """Map-style dataset over clips of a store: 48 bytes a clip in memory, one read for latents, one for the prompt.

    Tensors come in the dtype they were stored in (bfloat16 unless the store was written otherwise).

    Args:
        store: where the clips are.
        clip_ids: stable name of each row's clip.
        latent_keys: key of each row's latents.
        prompt_keys: key of each row's prompt embeddings.
        clip_extras: names of further tensors stored with the latents.
        prompt_extras: names of further tensors stored with the prompt embeddings.

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
    ) -> None:
        self._latents = store.locate("latent", "latents", latent_keys)
        self._prompts = store.locate("prompt", "prompt_embeds", prompt_keys)
        self._extras = {name: store.locate("prompt", name, prompt_keys) for name in prompt_extras}
        self._extras |= {name: store.locate("latent", name, latent_keys) for name in clip_extras}
        self.keys = np.fromiter((clip_key(clip_id) for clip_id in clip_ids), np.int64, len(clip_ids))

    @classmethod
    def from_clips(
        cls,
        store: LatentStore,
        clips: Sequence[Clip],
        identity: Mapping[str, str],
        dtype: str = "bfloat16",
        background: Color = BLACK,
        clip_extras: Sequence[str] = (),
        prompt_extras: Sequence[str] = (),
    ) -> LatentDataset:
        """Rows in the order of ``clips``, as the encoders of ``identity`` (``vae``, ``text``) would encode them.

        Raises:
            UserError: something is not stored; names what differs from what is.
        """
        latents = [LatentRecipe.of(clip, identity, dtype, background) for clip in clips]
        prompts = [PromptRecipe.of(clip.source.caption, identity, dtype) for clip in clips]
        store.require(latents)
        store.require(prompts)
        ids = [clip.clip_id for clip in clips]
        latent_keys, prompt_keys = [recipe.key for recipe in latents], [recipe.key for recipe in prompts]
        return cls(store, ids, latent_keys, prompt_keys, clip_extras, prompt_extras)

    def __len__(self) -> int:
        return len(self._latents)

    def __getitem__(self, index: int) -> LatentSample:
        return LatentSample(
            latents=self._latents.read(index),
            prompt_embeds=self._prompts.read(index),
            row=index,
            key=int(self.keys[index]),
            extras={name: table.read(index) for name, table in self._extras.items()},
        )

    def latent_shape(self, index: int) -> tuple[int, ...]:
        """(C, F, H, W) of a row, without reading it."""
        return self._latents.layout(index)[0]

    def read_batch(self, rows: Sequence[int], prompt_length: int | None = None) -> LatentBatch:
        """Rows of one resolution, read straight into the batch: :func:`vidlit.data.batch.collate` without its copies.

        Args:
            rows: rows of clips whose latents have one shape.
            prompt_length: length to pad prompts to or cut them at; ``None`` pads to the longest of the batch.

        Raises:
            UserError: the clips are of several resolutions, or a shard was damaged.
        """
        prompts = [self._prompts.layout(row) for row in rows]
        (_, width), prompt_dtype = prompts[0]
        lengths = [tokens for (tokens, _), _ in prompts]
        length = prompt_length or max(lengths)
        latents = _stack(self._latents, rows)
        prompt_embeds = batch_memory((len(rows), length, width), prompt_dtype)
        mask = torch.arange(length) < torch.tensor(lengths)[:, None]
        prompt_bytes = as_bytes(prompt_embeds)
        prompt_size = len(prompt_bytes) // len(rows)
        for place, (row, tokens) in enumerate(zip(rows, lengths, strict=True)):
            if tokens <= length:
                self._prompts.read_into(row, prompt_bytes[place * prompt_size :])
                if tokens < length:
                    prompt_embeds[place, tokens:] = 0
            else:
                prompt_embeds[place] = self._prompts.read(row)[:length]
        extras = {name: _stack(table, rows) for name, table in self._extras.items()}
        indices = torch.tensor(rows, dtype=torch.int64)
        conditioning = Conditioning(prompt_embeds, mask, extras)
        return LatentBatch(latents, conditioning, indices, torch.from_numpy(self.keys[rows]))

    def batches(self, prompt_length: int | None = None) -> LatentBatches:
        """The same clips by lists of rows, for ``DataLoader(..., sampler=lists_of_rows, batch_size=None)``."""
        return LatentBatches(self, prompt_length)


def _stack(table: TensorTable, rows: Sequence[int]) -> Tensor:
    """Tensors of one shape, read straight into one tensor."""
    layout = table.layout(rows[0])
    if other := [row for row in rows if table.layout(row) != layout]:
        raise UserError(f"rows {rows[0]} and {other[0]} of one batch are of two resolutions: batch by bucket")
    shape, dtype = layout
    stacked = batch_memory((len(rows), *shape), dtype)
    data = as_bytes(stacked)
    size = len(data) // len(rows)
    for place, row in enumerate(rows):
        table.read_into(row, data[place * size :])
    return stacked


class LatentBatches(Dataset[LatentBatch]):
    """Map-style dataset whose index is a list of rows, as a batch sampler yields them; see :meth:`read_batch`."""

    def __init__(self, dataset: LatentDataset, prompt_length: int | None = None) -> None:
        self.dataset, self.prompt_length = dataset, prompt_length

    def __getitem__(self, rows: Sequence[int]) -> LatentBatch:
        return self.dataset.read_batch(rows, self.prompt_length)
