"""Encoding in Lightning's predict loop: the ranks of one machine, each with its own encoders."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from vidlit.diffusion.batch import as_is
from vidlit.errors import UserError
from vidlit.latents.encode.decode import ClipBatches, DecodedClips
from vidlit.latents.encode.device_encoders import DeviceEncoders
from vidlit.latents.encode.progress import EncodeProgress
from vidlit.latents.encode.shard_writer import ShardWriter
from vidlit.latents.encode.work import Job, Work, encode_captions
from vidlit.latents.encoding import num_cores
from vidlit.latents.quiet_lightning import BARE_TRAINER
from vidlit.latents.store import Item
from vidlit.models.device_memory import free_memory

T = TypeVar("T")


class LightningEngine:
    """The ranks of a Lightning Trainer; each takes a fixed share.

    Args:
        options: ``accelerator``, ``devices``, ``num_nodes``, ``strategy`` ... of the Trainer.
    """

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self.trainer = Trainer(**BARE_TRAINER, **(options or {}))

    @property
    def is_first(self) -> bool:
        """Is this the process that looks at the store, and tidies it?"""
        return self.trainer.is_global_zero

    def run(self, work: Work, job: Job) -> None:
        """Encode what is missing; every rank calls it. Several always meet: the first one's view goes for all."""
        if not work.is_missing and self.trainer.world_size == 1:
            return
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it so
        callbacks += [_Writing(job.writer())]
        self.trainer.predict(_EncodingModule(work, job), return_predictions=False)
        self.trainer.strategy.barrier("encoded")  # what comes next reads what all ranks wrote

    def shared(self, found: T | None) -> T:
        """What the first rank found, on all of them."""
        return cast("T", self.trainer.strategy.broadcast(found))


class _EncodingModule(LightningModule):
    def __init__(self, work: Work, job: Job) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer batches than ranks
        self.work, self.job = work, job
        self.encoders: DeviceEncoders | None = None
        self.num_clips = 0

    def predict_dataloader(self) -> list[DataLoader[Any]]:
        work = self.work
        seen = (work.todo, work.todo_prompts, work.num_stored)
        work.todo, work.todo_prompts, work.num_stored = self.trainer.strategy.broadcast(seen)
        mine = slice(self.trainer.global_rank, None, self.trainer.world_size)
        captions = work.caption_batches()[mine]
        on_gpu = self.trainer.strategy.root_device.type == "cuda"
        clips = work.clip_batches(self.job.encoding, on_gpu=on_gpu)[mine]
        self.num_clips = sum(map(len, clips))
        workers = self.job.encoding.num_workers
        if workers is None:
            ranks_here = max(1, self.trainer.world_size // self.trainer.num_nodes)
            workers = max(1, num_cores() // ranks_here)
        return [
            DataLoader(captions, batch_size=None, collate_fn=as_is),  # type: ignore[arg-type]  # a list will do
            DataLoader(
                ClipBatches(work.clips, clips, self.job.decoding),
                batch_size=None,
                collate_fn=as_is,
                num_workers=min(workers, len(clips)),
            ),
        ]

    def on_predict_start(self) -> None:
        self.encoders = self.job.encoders(self.device)

    def predict_step(self, batch: DecodedClips | list[int], batch_idx: int, dataloader_idx: int = 0) -> list[Item]:
        assert self.encoders is not None
        if isinstance(batch, DecodedClips):
            return self.work.encode_clips(batch, self.encoders)
        return encode_captions([self.work.prompt(row) for row in batch], self.encoders.encoders)

    def on_predict_end(self) -> None:
        self.encoders = None
        free_memory(self.device)  # what comes next loads the transformer


class _Writing(BasePredictionWriter):
    """Hands what is encoded on, and says how far the first rank is."""

    def __init__(self, writer: ShardWriter) -> None:
        super().__init__("batch")
        self.writer = writer
        self.held = contextlib.ExitStack()
        self.progress: EncodeProgress | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_predict_start(trainer, pl_module)
        if trainer.is_global_zero:
            ranks = f" (1 of {trainer.world_size} ranks)" if trainer.world_size > 1 else ""
            num_clips = int(pl_module.num_clips)  # type: ignore[arg-type]  # an attribute of a module
            self.progress = self.held.enter_context(EncodeProgress(num_clips, ranks))

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
        self.writer.add(prediction)
        if self.progress is not None and dataloader_idx > 0:  # loader 0 holds the captions
            self.progress.advance(len(prediction), sum(bool(item.reason) for item in prediction))
        if trainer.received_sigterm:  # Lightning takes note of the signal, and then predicts on to the end
            raise SIGTERMException

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.writer.flush()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, UserError):  # such as a full disk, which would only fail again
            self.writer.flush()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.held.close()
