"""Clips and captions to latents and prompt embeddings: Lightning's predict loop, any number of ranks."""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader

from vidlit.diffusion.batch import as_is
from vidlit.errors import UserError
from vidlit.latents.damage import Damage
from vidlit.latents.decode import ClipBatches, ClipReader, DecodedClips
from vidlit.latents.encode_progress import EncodeProgress
from vidlit.latents.encoding import CutCaptions, EncodeReport, Encoding, QuarantinedClip, num_cores
from vidlit.latents.quiet_lightning import quiet_lightning
from vidlit.latents.recipe import MASK, LatentRecipe, PromptRecipe
from vidlit.latents.store import Item, LatentStore
from vidlit.video.isolation import IsolatedReader

if TYPE_CHECKING:
    from vidlit.models.encoders import ReadTokens
    from vidlit.video.sources import Clip

_CAPTIONS_PER_BATCH = 16


class Encoders(Protocol):
    """A family's video autoencoder and text encoder. Captions are all encoded before the first clip."""

    identity: Mapping[str, str]
    """``vae`` and ``text``: names that change whenever the outputs do."""

    def to(self, device: torch.device) -> Self:
        """Move to the device of a rank."""

    def encode_video(self, frames: Tensor, sound: Tensor | None) -> dict[str, Tensor]:
        """Frames (B, F, H, W, 3) uint8 to named tensors, at least normalised ``latents`` (B, C, f, h, w).

        With them goes their sound (B, 2, n), zero where a clip is silent, if the call of :func:`encode` asks for it.
        """

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Masks (B, F, H, W) uint8 of clips to (B, 1, f, h, w) in [0, 1], of the shape of their latents."""

    def encode_captions(self, captions: list[str]) -> list[dict[str, Tensor]]:
        """For each caption its tensors without padding, at least ``prompt_embeds`` (L, D)."""

    def read_tokens(self, captions: list[str]) -> list[ReadTokens]:
        """How much of each caption the text encoder reads."""


def encode(
    clips: Sequence[Clip],
    store: LatentStore,
    identity: Mapping[str, str],
    load_encoders: Callable[[], Encoders],
    encoding: Encoding = Encoding(),  # noqa: B008 - frozen
    *,
    further_captions: Sequence[str] = (),
    sample_rate: int | None = None,
    retry_quarantined: bool = False,
    retry_transient: bool = True,
    repair: bool = False,
    open_reader: Callable[[], ClipReader] = IsolatedReader,
    trainer_options: Mapping[str, Any] | None = None,
) -> EncodeReport:
    """Encode what the store lacks: each clip once, each distinct caption once, over all ranks.

    Killed at any instant, the next call goes on from what was committed: at most one shard per rank is redone.
    A clip that cannot be read is quarantined in the store with its reason. Where that is one of time, memory or the
    system, the next call tries it again; else it is tried again when its file changes, or with ``retry_quarantined``.
    Of several processes that fill one store, each waits for the one before. Where nothing is missing, nothing is
    written: the store may be on a disk that is read-only.

    Args:
        clips: what to encode, the same on all ranks.
        store: where to.
        identity: ``vae`` and ``text``, as the encoders will say once loaded.
        load_encoders: called on each rank, only if something is missing.
        encoding: how. The encoders give ``latents_std``, too, where it is with a standard deviation.
        further_captions: to encode beside those of the clips.
        sample_rate: samples a second of the sound that the encoders are given; ``None`` for none.
        retry_quarantined: try clips again that failed before, whatever the reason.
        retry_transient: try clips again that failed for a reason of time, memory or the system. A run that goes on
            does not: it would go on with other clips.
        repair: compare all that is stored with its checksums first, and forget what is damaged or gone: of what
            this call needs, it is encoded again, and nothing else is.
        open_reader: called in each worker for what reads its clips.
        trainer_options: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` ... of Lightning's Trainer.

    Raises:
        UserError: the store cannot be written, or the encoders are not those of ``identity``.
    """
    began = time.monotonic()
    dtype, background = encoding.dtype, encoding.background
    recipes = [LatentRecipe.of(clip, identity, dtype, background, encoding.with_std) for clip in clips]
    captions = dict.fromkeys([*(caption for clip in clips for caption in clip.source.captions), *further_captions])
    work = _Work(clips, recipes, [PromptRecipe.of(caption, identity, dtype) for caption in captions])
    decode = functools.partial(
        ClipBatches, clips, open_reader=open_reader, background=background, sample_rate=sample_rate
    )
    module = _EncodingModule(work, decode, encoding, identity, load_encoders)
    damaged: list[Damage] = []
    with contextlib.ExitStack() as held:
        held.enter_context(quiet_lightning())
        trainer = Trainer(
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[_StoreWriter(store, encoding), EncodeProgress()],
            **(trainer_options or {}),
        )
        if trainer.is_global_zero:
            retried = _Retried(retry_quarantined, retry_transient or retry_quarantined)
            if repair or work.look(store, retried):
                held.enter_context(store.encoding())
                damaged = store.repair() if repair else []
                work.look(store, retried)  # another process may have encoded it all meanwhile
        # Several ranks always meet: the first one's view of what is missing goes for all.
        if work.is_missing or trainer.world_size > 1:
            trainer.predict(module, return_predictions=False)
            trainer.strategy.barrier("encoded")  # what comes next reads what all ranks wrote
            if trainer.is_global_zero and work.is_missing:
                store.compact()
    after, quarantined = store.keys("latent"), store.quarantined()
    return EncodeReport(
        encoded=sum(recipes[row].key in after for row in work.todo),
        captions=len(work.todo_prompts),
        stored=work.num_stored,
        damaged=len(damaged),
        quarantined=[
            quarantined[recipe.key]._replace(clip_id=clip.clip_id, video=clip.source.video)
            for clip, recipe in zip(clips, recipes, strict=True)
            if recipe.key not in after and recipe.key in quarantined
        ],
        cut=_cut_captions(store, clips, work.prompts),
        seconds=time.monotonic() - began,
    )


def _cut_captions(store: LatentStore, clips: Sequence[Clip], prompts: Sequence[PromptRecipe]) -> CutCaptions:
    """Which captions the text encoder did not read to their ends, as the store remembers it."""
    # The first clip of each.
    clip_of = {caption: clip.clip_id for clip in reversed(clips) for caption in clip.source.captions}
    read = store.read_tokens()
    known = [(prompt.caption, *read[prompt.key]) for prompt in prompts if prompt.key in read]
    names = {caption: clip_of.get(caption, repr(caption[:60])) for caption, _, _ in known}
    alike: dict[str, list[str]] = {}
    for caption, _, kept in known:
        alike.setdefault(kept, []).append(names[caption])
    cut = [(names[caption], num_cut) for caption, num_cut, _ in known if num_cut]
    kept_of_cut = dict.fromkeys(kept for _, num_cut, kept in known if num_cut and kept)
    return CutCaptions(cut, len(prompts), [alike[kept] for kept in kept_of_cut if len(alike[kept]) > 1])


class _Retried(NamedTuple):
    """Clips that are tried again: those that failed for good, and those whose reason may have passed."""

    final: bool
    transient: bool

    def has(self, clip: QuarantinedClip) -> bool:
        return self.transient if clip.transient else self.final


@dataclass
class _Work:
    """All clips and distinct captions, and the rows of them that are to be encoded."""

    clips: Sequence[Clip]
    recipes: list[LatentRecipe]
    prompts: list[PromptRecipe]
    todo: list[int] = field(default_factory=list)
    todo_prompts: list[int] = field(default_factory=list)
    num_stored: int = 0

    @property
    def is_missing(self) -> bool:
        return bool(self.todo or self.todo_prompts)

    def look(self, store: LatentStore, retried: _Retried) -> bool:
        """See what the store lacks; is it anything?"""
        stored, stored_prompts = store.keys("latent"), store.keys("prompt")
        skip = stored | {key for key, clip in store.quarantined().items() if not retried.has(clip)}
        rows_of_key = {recipe.key: row for row, recipe in reversed(list(enumerate(self.recipes)))}  # the first of each
        self.todo = [row for key, row in rows_of_key.items() if key not in skip]
        self.todo.sort(key=lambda row: (self.clips[row].bucket, row))
        self.todo_prompts = [row for row, recipe in enumerate(self.prompts) if recipe.key not in stored_prompts]
        self.num_stored = sum(recipe.key in stored for recipe in self.recipes)
        return self.is_missing

    def clip_batches(self, size: int) -> list[list[int]]:
        """Rows in batches of one bucket."""
        batches: list[list[int]] = []
        for _, rows in itertools.groupby(self.todo, key=lambda row: self.clips[row].bucket):
            batches += _chunks(list(rows), size)
        return batches

    def item(self, row: int, tensors: dict[str, Tensor], reason: str = "", transient: bool = False) -> Item:
        clip = self.clips[row]
        source = clip.source
        return Item(self.recipes[row], tensors, clip.clip_id, source.video, source.group, reason, transient)


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
        seen = (work.todo, work.todo_prompts, work.num_stored)
        work.todo, work.todo_prompts, work.num_stored = self.trainer.strategy.broadcast(seen)
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
        captions = [recipe.caption for recipe in recipes]
        prompts, read = self.encoders.encode_captions(captions), self.encoders.read_tokens(captions)
        return [
            Item(
                recipe,
                {name: _to_store(tensor, recipe.dtype) for name, tensor in tensors.items()},
                num_cut_tokens=tokens.num_cut,
                kept_tokens=tokens.kept,
            )
            for recipe, tensors, tokens in zip(recipes, prompts, read, strict=True)
        ]

    def _encode_clips(self, batch: DecodedClips, encoders: Encoders) -> list[Item]:
        items = [self.work.item(row, {}, reason, transient) for row, (reason, transient) in batch.failed.items()]
        if not batch.rows:
            return items
        encoded = encoders.encode_video(batch.frames, batch.sound)
        for place, row in enumerate(batch.rows):
            dtype = self.work.recipes[row].dtype
            stored = {name: _to_store(tensor[place], dtype) for name, tensor in encoded.items()}
            if row in batch.masks:
                whole = batch.masks[row].expand(batch.frames.shape[1:4])
                stored[MASK] = _to_store(encoders.encode_masks(whole[None])[0], dtype)
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
