"""The LightningDataModule: a folder of clips, its latents, and the loaders over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from vidlit.data.batch_sampler import BucketSequence, DataRanks
from vidlit.data.caption_variants import CaptionsInTurn
from vidlit.data.clip_folder import ClipFolder
from vidlit.data.identity import TABLE, check_clips
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import LatentBatch, as_is
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encode.missing import EngineName, encode
from vidlit.latents.encoding import EncodeReport
from vidlit.lightning_internals import replaces_samplers
from vidlit.models.encoders import BaseEncoders
from vidlit.video.sources import Clip

T = TypeVar("T")
Loader = DataLoader[LatentBatch]
_OF_WHAT_IS_STORED = ("_failed", "split", "usage", "clip_identity", "scored_clips", "train_eval_clips")


class LatentDataModule(ClipFolder, LightningDataModule):
    """Endless batches of latents and prompt embeddings from a folder of videos, each of one resolution.

    Its options are those of :class:`vidlit.data.clip_folder.ClipFolder`.
    """

    _position = 0
    """Batches that are over."""
    _digests: Mapping[str, str]
    """Of :attr:`clip_identity`."""

    def encode(
        self,
        retry_quarantined: bool = False,
        repair: bool = False,
        retry_transient: bool = True,
        engine: EngineName = "lightning",
        **trainer_options: Any,
    ) -> EncodeReport:
        """Encode what the store lacks.

        Args:
            retry_quarantined: try clips again that could not be encoded before, whatever the reason.
            repair: encode again what is damaged or gone, too.
            retry_transient: try clips again that failed for a reason of time, memory or the system.
            engine: what does it: Lightning's ranks, or a Ray cluster.
            trainer_options: ``accelerator``, ``devices``, ``strategy`` ... of Lightning's.
        """
        report = encode(
            self.stored_clips,
            self.store,
            self.recipes,
            partial(BaseEncoders, self.family, self.encoding.with_std, self.encoding.tiled),
            further_captions=self.further_captions,
            sample_rate=self.family.sample_rate,
            retry_quarantined=retry_quarantined,
            retry_transient=retry_transient,
            repair=repair,
            open_reader=self.open_reader,
            engine=engine,
            trainer_options=trainer_options,
        )
        for told in _OF_WHAT_IS_STORED:
            self.__dict__.pop(told, None)
        return report

    def setup(self, stage: str) -> None:
        """Make sure of the split and, before long training, of what the trainer must leave alone."""
        self._digests = self._from_first(lambda: self.clip_identity.digests)
        if stage == "fit" and not self.split.val and not self.splitting.train_on_val:
            videos = len({clip.source.group for clip in self.train_clips})
            rank_zero_warn(
                f"there are no validation clips ({videos} recording{'' if videos == 1 else 's'}, "
                f"data.split.val_fraction {self.splitting.val_fraction:g}): overfitting cannot be detected from "
                "losses, and there is no best step to go back to. Only exposures and copies can stop the run: set "
                "--exposure.hard_cap, or a low trainer.max_steps (`vidlit plan` says how low)."
            )
        trainer = self.trainer
        if trainer is not None and trainer.world_size > 1 and replaces_samplers(trainer):
            raise UserError("set use_distributed_sampler=False on the Trainer: batches are shared out over ranks here.")

    # -- loaders

    @property
    def samples_per_batch(self) -> float:
        """Samples of a micro-batch over all ranks, on average over the buckets."""
        return self.sampler(*DataRanks.of(self.trainer)[:2]).mean_batch_size

    def train_dataloader(self) -> Loader:
        """Endless batches of exactly ``batches.size`` samples, going on from where a checkpoint was."""
        replicas, rank, *_ = DataRanks.of(self.trainer)
        sampler = self.sampler(replicas, rank, self._position)
        for number, num_clips in sampler.small_buckets.items():
            rank_zero_warn(
                f"bucket {self.buckets[number]} holds {num_clips} training clips, fewer than the "
                f"{self.batch_sizes[number] * replicas} of a batch: its batches are filled by "
                f"{self.batching.small_bucket}"
            )
        in_turn = CaptionsInTurn(sampler, self.train_clips, self.seed)
        return self._loader(self._from_first(lambda: self.dataset(self.train_clips, for_training=True)), in_turn)

    def val_dataloader(self) -> list[Loader]:
        """Validation clips, where there are any, then the training subset, each clip once."""
        return [self._each_once(clips) for clips in (self.scored_clips, self.train_eval_clips) if clips]

    def test_dataloader(self) -> Loader:
        """Test clips, each once.

        Raises:
            UserError: no test clips were held out.
        """
        if not self.test_clips:
            raise UserError("there are no test clips: set --data.split.test_fraction, as it was for training.")
        return self._each_once(self.test_clips)

    def _each_once(self, clips: list[Clip]) -> Loader:
        replicas, rank, *_ = DataRanks.of(self.trainer)
        buckets = [self.buckets.index(clip.bucket) for clip in clips]
        order = BucketSequence(buckets, self.val_batch_sizes, num_replicas=replicas, rank=rank, even=replicas > 1)
        return self._loader(self._from_first(lambda: self.dataset(clips)), order)

    def _loader(self, dataset: LatentDataset, batch_sampler: Any) -> Loader:
        return TimedLoader(
            dataset.batches(self.family.prompt_length),
            sampler=batch_sampler,  # lists of rows: a batch is read in one go
            batch_size=None,
            collate_fn=as_is,
            num_workers=self.batching.num_workers,
            persistent_workers=self.batching.num_workers > 0,
            pin_memory=self.trainer is not None and self.trainer.strategy.root_device.type == "cuda",
        )

    def _from_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes of all clips, on all ranks: the others need neither index nor keys.

        Raises:
            UserError: as there.
        """
        trainer = self.trainer
        if trainer is None or trainer.world_size == 1:
            return make()
        made: tuple[T | None, UserError | None] = None, None
        if trainer.is_global_zero:
            try:
                made = make(), None
            except UserError as error:
                made = None, error
        found, refused = trainer.strategy.broadcast(made)
        if refused is not None:
            raise refused
        return cast("T", found)  # no error: it was made

    def _global_batch_sizes(self) -> dict[str, int]:
        replicas = DataRanks.of(self.trainer).size
        return {str(bucket): size * replicas for bucket, size in zip(self.buckets, self.batch_sizes, strict=True)}

    # -- state: one number, the position in the endless sequence of global micro-batches

    def state_dict(self) -> dict[str, Any]:
        """Batches trained on so far, and the size that makes the number mean something."""
        assert self.trainer is not None
        return {
            "position": self.trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            "global_batch_sizes": self._global_batch_sizes(),
            "clips": self._digests,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch of a checkpoint.

        Raises:
            UserError: the clips are not those that the checkpoint was made with, or the global batch is another one,
                so that the position would point elsewhere.
        """
        self._position = state_dict["position"]
        if self.trainer is None or self.trainer.state.fn is None:
            return
        command = self.trainer.state.fn.value
        table = Path(str(self.trainer.ckpt_path)).absolute().parents[1] / TABLE
        if command != "fit" or state_dict.get("clips") != self._digests:
            check_clips(self.clip_identity, state_dict.get("clips"), command, table)
        here, there = self._global_batch_sizes(), state_dict["global_batch_sizes"]
        if command == "fit" and here != there:
            raise UserError(
                f"the checkpoint was trained with {there} samples a micro-batch over all ranks (by bucket), here it is "
                f"{here}: set --data.batches.size so that size x ranks is the same, with the same buckets."
            )
