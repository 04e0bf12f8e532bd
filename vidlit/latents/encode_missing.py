"""Clips and captions to latents and prompt embeddings: Lightning's predict loop, any number of ranks."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from vidlit.diffusion.batch import as_is
from vidlit.errors import UserError
from vidlit.latents.decode import ClipBatches, ClipReader, DecodedClips
from vidlit.latents.encode_progress import EncodeProgress
from vidlit.latents.encoding import EncodeReport, Encoding, QuarantinedClip, num_cores
from vidlit.latents.quiet_lightning import quiet_lightning
from vidlit.latents.recipe import LatentRecipe, PromptRecipe
from vidlit.latents.store import Item, LatentStore
from vidlit.video.isolation import IsolatedReader

if TYPE_CHECKING:
    from vidlit.video.sources import Clip

_CAPTIONS_PER_BATCH = 16


class Encoders(Protocol):
    """A family's video autoencoder and text encoder. Captions are all encoded before the first clip."""

    identity: Mapping[str, str]
    """``vae`` and ``text``: names that change whenever the outputs do."""

    def to(self, device: torch.device) -> Self:
        """Move to the device of a rank."""

    def encode_video(self, frames: Tensor) -> dict[str, Tensor]:
        """Frames (B, F, H, W, 3) uint8 to named tensors, at least normalised ``latents`` (B, C, f, h, w)."""

    def encode_captions(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption its tensors without padding, at least ``prompt_embeds`` (L, D)."""


def encode(
    clips: Sequence[Clip],
    store: LatentStore,
    identity: Mapping[str, str],
    load_encoders: Callable[[], Encoders],
    encoding: Encoding = Encoding(),  # noqa: B008 - frozen
    *,
    further_captions: Sequence[str] = (),
    retry_quarantined: bool = False,
    open_reader: Callable[[], ClipReader] = IsolatedReader,
    trainer_options: Mapping[str, Any] | None = None,
) -> EncodeReport:
    """Encode what the store lacks: each clip once, each distinct caption once, over all ranks.

    Killed at any instant, the next call goes on from what was committed: at most one shard per rank is redone.
    A clip that cannot be read is quarantined in the store with its reason; it is tried again when its file
    changes, or with ``retry_quarantined``.

    Args:
        clips: what to encode, the same on all ranks.
        store: where to.
        identity: ``vae`` and ``text``, as the encoders will say once loaded.
        load_encoders: called on each rank, only if something is missing.
        encoding: how. The encoders give ``latents_std``, too, where it is with a standard deviation.
        further_captions: to encode beside those of the clips.
        retry_quarantined: try clips again that failed before.
        open_reader: called in each worker for what reads its clips.
        trainer_options: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` ... of Lightning's Trainer.

    Raises:
        UserError: the store cannot be written, or the encoders are not those of ``identity``.
    """
    began = time.monotonic()
    store.clean()
    dtype, background = encoding.dtype, encoding.background
    recipes = [LatentRecipe.of(clip, identity, dtype, background, encoding.with_std) for clip in clips]
    captions = dict.fromkeys([*(clip.source.caption for clip in clips), *further_captions])
    prompts = [PromptRecipe.of(caption, identity, dtype) for caption in captions]
    before = store.keys("latent")
    skip = before if retry_quarantined else before | store.keys("quarantined")
    rows_of_key = {recipe.key: row for row, recipe in reversed(list(enumerate(recipes)))}  # the first of each
    todo = [row for key, row in rows_of_key.items() if key not in skip]
    todo.sort(key=lambda row: (clips[row].bucket, row))
    stored_prompts = store.keys("prompt")
    todo_prompts = [row for row, recipe in enumerate(prompts) if recipe.key not in stored_prompts]
    if todo or todo_prompts:
        work = _Work(clips, recipes, todo, prompts, todo_prompts)
        decode = functools.partial(ClipBatches, clips, open_reader=open_reader, background=background)
        module = _EncodingModule(work, decode, encoding, identity, load_encoders)
        with quiet_lightning():
            trainer = Trainer(
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                callbacks=[_StoreWriter(store, encoding), EncodeProgress()],
                **(trainer_options or {}),
            )
            trainer.predict(module, return_predictions=False)
        trainer.strategy.barrier("encoded")  # what comes next reads what all ranks wrote
        if trainer.is_global_zero:
            store.compact()
    after = store.keys("latent")
    reasons = {row["key"]: row["reason"] for row in store.quarantined().to_pylist()}
    return EncodeReport(
        encoded=sum(recipes[row].key in after for row in todo),
        captions=len(todo_prompts),
        stored=sum(recipe.key in before for recipe in recipes),
        quarantined=[
            QuarantinedClip(clip.clip_id, clip.source.video, reasons[recipe.key])
            for clip, recipe in zip(clips, recipes, strict=True)
            if recipe.key not in after and recipe.key in reasons
        ],
        seconds=time.monotonic() - began,
    )


@dataclass
class _Work:
    """All clips and distinct captions, and the rows of them that are to be encoded."""

    clips: Sequence[Clip]
    recipes: list[LatentRecipe]
    todo: list[int]
    prompts: list[PromptRecipe]
    todo_prompts: list[int]

    def clip_batches(self, size: int) -> list[list[int]]:
        """Rows in batches of one bucket."""
        batches: list[list[int]] = []
        for _, rows in itertools.groupby(self.todo, key=lambda row: self.clips[row].bucket):
            batches += _chunks(list(rows), size)
        return batches

    def item(self, row: int, tensors: dict[str, Tensor], reason: str = "") -> Item:
        clip = self.clips[row]
        return Item(self.recipes[row], tensors, clip.clip_id, clip.source.video, clip.source.group, reason)


def _chunks(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


class _EncodingModule(LightningModule):
    def __init__(
        self,
        work: _Work,
        decode: Callable[[list[list[int]]], ClipBatches],
        encoding: Encoding,
        identity: Mapping[str, str],
        load_encoders: Callable[[], Encoders],
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer batches than ranks
        self.work, self.decode = work, decode
        self.encoding = encoding
        self.identity, self.load_encoders = dict(identity), load_encoders
        self.encoders: Encoders | None = None
        self.num_clips = 0

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        work = self.work
        # Rank 0's view of what is missing goes for all: another run may be filling the same store.
        work.todo, work.todo_prompts = self.trainer.strategy.broadcast((work.todo, work.todo_prompts))
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        captions = _chunks(work.todo_prompts, _CAPTIONS_PER_BATCH)[mine]
        clips = work.clip_batches(self.encoding.batch_size)[mine]
        self.num_clips = sum(map(len, clips))
        workers = self.encoding.num_workers
        if workers is None:
            ranks_here = max(1, self.trainer.world_size // self.trainer.num_nodes)
            workers = max(1, num_cores() // ranks_here)
        return [
            DataLoader(captions, batch_size=None, collate_fn=as_is),  # type: ignore[arg-type]  # a list will do
            DataLoader(
                self.decode(clips),
                batch_size=None,
                collate_fn=as_is,
                num_workers=min(workers, len(clips)),
            ),
        ]

    def on_predict_start(self) -> None:
        self.encoders = self.load_encoders().to(self.device)
        if dict(self.encoders.identity) != self.identity:
            raise UserError(
                f"the encoders that were loaded are {dict(self.encoders.identity)}, expected {self.identity}: "
                "their files changed while this run was starting; run again"
            )

    def predict_step(self, batch: DecodedClips | list[int], batch_idx: int, dataloader_idx: int = 0) -> list[Item]:
        assert self.encoders is not None
        if isinstance(batch, DecodedClips):
            return self._encode_clips(batch, self.encoders)
        recipes = [self.work.prompts[row] for row in batch]
        prompts = self.encoders.encode_captions([recipe.caption for recipe in recipes])
        return [
            Item(recipe, {name: _to_store(tensor, recipe.dtype) for name, tensor in tensors.items()})
            for recipe, tensors in zip(recipes, prompts, strict=True)
        ]

    def _encode_clips(self, batch: DecodedClips, encoders: Encoders) -> list[Item]:
        items = [self.work.item(row, {}, reason) for row, reason in batch.failed.items()]
        if not batch.rows:
            return items
        encoded = encoders.encode_video(batch.frames)
        for place, row in enumerate(batch.rows):
            dtype = self.work.recipes[row].dtype
            stored = {name: _to_store(tensor[place], dtype) for name, tensor in encoded.items()}
            if all(tensor.isfinite().all() for tensor in stored.values()):
                items.append(self.work.item(row, stored))
            else:
                items.append(self.work.item(row, {}, "the video autoencoder gave NaN or infinity"))
        return items

    def on_predict_end(self) -> None:
        self.encoders = None


def _to_store(tensor: Tensor, dtype: str) -> Tensor:
    """A copy that shares memory with nothing: safetensors refuses aliases, and a view would keep its batch alive."""
    target = getattr(torch, dtype) if tensor.is_floating_point() else tensor.dtype
    return tensor.detach().to("cpu", target, copy=True, memory_format=torch.contiguous_format)


class _StoreWriter(BasePredictionWriter):
    """Gathers items and commits them shard by shard."""

    def __init__(self, store: LatentStore, encoding: Encoding) -> None:
        super().__init__("batch")
        self.store, self.encoding = store, encoding
        self.items: list[Item] = []
        self.since = 0.0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: list[Item],
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not self.items:
            self.since = time.monotonic()
        self.items += prediction
        waited = time.monotonic() - self.since
        held = sum(item.nbytes for item in self.items)
        if waited > self.encoding.shard_seconds or held >= self.encoding.shard_bytes:
            self.flush()
        if trainer.received_sigterm:  # Lightning takes note of the signal, and then predicts on to the end
            raise SIGTERMException

    def flush(self) -> None:
        items, self.items = self.items, []
        self.store.write(items)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, UserError):  # such as a full disk, which would only fail again
            self.flush()
