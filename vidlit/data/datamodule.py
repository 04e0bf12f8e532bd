"""The LightningDataModule: a folder of clips, its latents, and the loaders over them."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_warn
from torch.utils.data import DataLoader

from vidlit.data.batch_sampler import BucketSequence, ResolutionBatchSampler
from vidlit.data.batching import Batching
from vidlit.data.split import Split, Splitting, split_by_video, spread_over_videos
from vidlit.data.timed_loader import TimedLoader
from vidlit.diffusion.batch import Conditioning, LatentBatch, as_is
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encoding import EncodeReport, Encoding, encode
from vidlit.latents.recipe import LatentRecipe, PromptRecipe
from vidlit.latents.store import LatentStore
from vidlit.lightning_internals import replaces_samplers
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.video.buckets import Bucket, BucketBudget, BucketPolicy
from vidlit.video.cut import Cutting, DatasetPlan, plan_clips
from vidlit.video.sources import Clip

Loader = DataLoader[LatentBatch]
TRAIN_EVAL_ALONE = 16
"""Training clips that are scored where there are no validation clips."""


class LatentDataModule(LightningDataModule):
    """Endless batches of latents and prompt embeddings from a folder of videos, each of one resolution.

    Args:
        source: folder of videos with captions, in any of the accepted layouts.
        store: folder of encoded latents; missing ones are encoded, the others reused.
        base: diffusers folder or hub name whose VAE and text encoder make the latents.
        buckets: resolutions as ``FRAMESxHEIGHTxWIDTH``, e.g. ``49x480x704``; or a policy that chooses them,
            such as a budget.
        fps: frame rate that clips are resampled to; ``None`` for the family's own.
        cutting: options for cutting videos into clips.
        split: options for splitting into training, validation and test.
        batches: size of batches, and how they are read.
        encoding: how clips and captions are encoded and stored.
        further_captions: captions to encode beside those of the clips, such as the negative prompt of guided samples.
        seed: seed of the split and of the order of clips.

    Raises:
        UserError: at :meth:`setup`, for anything wrong with the folder, the buckets or the split.
    """

    def __init__(
        self,
        source: Path,
        store: Path,
        base: str,
        buckets: list[str] | BucketBudget | BucketPolicy,
        fps: float | None = None,
        cutting: Cutting = Cutting(),  # noqa: B008 - frozen, as the three below
        split: Splitting = Splitting(),  # noqa: B008
        batches: Batching = Batching(),  # noqa: B008
        encoding: Encoding = Encoding(),  # noqa: B008
        further_captions: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.family = open_family(base, fps)
        self.source = source
        self.store = LatentStore(store)
        self.buckets = self._make_buckets(buckets)
        self.cutting, self.splitting, self.batching, self.encoding = cutting, split, batches, encoding
        tokens = [bucket.tokens(self.family.compression[0], self.family.pixel_multiple) for bucket in self.buckets]
        self.batch_sizes, self.val_batch_sizes = batches.sizes(tokens), batches.val_sizes(tokens)
        """Of each bucket, on one rank."""
        self.further_captions = further_captions or []
        self.seed = seed
        self.affordable_val_clips: int | None = None
        """Chosen together with the interval of checks; a resumed run keeps it."""
        self._position = 0
        if encoding.with_std and self.family.vae_is_deterministic:
            raise UserError(
                f"data.encoding.posterior is sample, but the VAE of {base} gives each video one latent, without a "
                "spread to draw from. Leave data.encoding.posterior at mode."
            )

    def _make_buckets(self, wanted: list[str] | BucketBudget | BucketPolicy) -> list[Bucket]:
        pixels = self.family.pixel_multiple
        if isinstance(wanted, BucketPolicy):
            buckets = wanted.buckets(self.family.compression[0], pixels)
        else:
            buckets = sorted({Bucket.parse(text) for text in wanted})
        if not buckets:
            raise UserError("data.buckets is empty: give at least one resolution, e.g. [49x480x704].")
        for bucket in buckets:
            bucket.check(self.family.frame_multiple, pixels)
            self.family.latent_shape(*bucket)  # refuses what the family cannot take
        return buckets

    # -- clips and latents

    @cached_property
    def plan(self) -> DatasetPlan:
        """Which clips the folder gives, from file headers alone."""
        plan = plan_clips(
            self.source,
            self.buckets,
            self.family.fps,
            self.cutting,
            tie_near_duplicates=self.splitting.tie_near_duplicates,
            cache=self.store.root / "files.json",
        )
        if not plan.clips:
            reasons = [f"{bad.video}: {bad.reason}" for bad in (*plan.quarantined, *plan.dropped)]
            shown = "; ".join(reasons[:3]) + (" ..." if len(reasons) > 3 else "")
            raise UserError(f"no clip of {self.source} can be used. {shown}")
        return plan

    def encode(self, retry_quarantined: bool = False, **trainer_options: Any) -> EncodeReport:
        """Encode what the store lacks.

        Args:
            retry_quarantined: try clips again that could not be encoded before.
            trainer_options: ``accelerator``, ``devices``, ``strategy`` ... of the Trainer that does it.
        """
        return encode(
            self.plan.clips,
            self.store,
            self.family.identity,
            lambda: BaseEncoders(self.family, self.encoding.with_std),
            self.encoding,
            further_captions=self.further_captions,
            retry_quarantined=retry_quarantined,
            trainer_options=trainer_options,
        )

    def latent_recipes(self) -> list[LatentRecipe]:
        """What the latents of each of the plan's clips are made of."""
        identity, encoding = self.family.identity, self.encoding
        return [
            LatentRecipe.of(clip, identity, encoding.dtype, encoding.background, encoding.with_std)
            for clip in self.plan.clips
        ]

    @cached_property
    def split(self) -> Split:
        """The clips of each side, without those that could not be encoded."""
        quarantined = self.store.keys("quarantined")
        clips = zip(self.plan.clips, self.latent_recipes(), strict=True)
        usable = [clip for clip, recipe in clips if recipe.key not in quarantined]
        return split_by_video(usable, self.splitting, self.seed)

    @property
    def train_clips(self) -> list[Clip]:
        """Clips trained on; rows as in ``LatentBatch.indices``."""
        return self.split.train

    @property
    def val_clips(self) -> list[Clip]:
        """Validation clips."""
        return self.split.val

    @property
    def test_clips(self) -> list[Clip]:
        """Clips that only the test sees."""
        return self.split.test

    @property
    def scored_clips(self) -> list[Clip]:
        """Validation clips that are scored at every check."""
        most = self.splitting.max_val_clips or self.affordable_val_clips
        if most is None or most >= len(self.split.val):
            return self.split.val
        return self.spread(self.split.val, most)

    @property
    def train_eval_clips(self) -> list[Clip]:
        """Training clips that are scored as the validation ones are."""
        return self.spread(self.split.train, len(self.scored_clips) or TRAIN_EVAL_ALONE)

    def spread(self, clips: list[Clip], num_clips: int) -> list[Clip]:
        """Some of the clips, spread evenly over recordings; always the same."""
        return spread_over_videos(clips, num_clips, self.seed)

    def dataset(self, clips: list[Clip], *, for_training: bool = False) -> LatentDataset:
        """Encoded clips by row.

        Args:
            clips: of each row.
            for_training: with what training draws latents from, if it does.

        Raises:
            UserError: some are not encoded; names what differs from what is stored.
        """
        drawn = ("latents_std",) if for_training and self.encoding.with_std else ()
        return LatentDataset.from_clips(
            self.store,
            clips,
            self.family.identity,
            self.encoding.dtype,
            self.encoding.background,
            clip_extras=(*self.family.clip_extras, *drawn),
            prompt_extras=self.family.prompt_extras,
            with_std=self.encoding.with_std,
        )

    def prompt(self, caption: str) -> Conditioning:
        """A stored caption, as of one sample.

        Raises:
            UserError: it is not stored: it is neither a clip's nor one of ``further_captions``.
        """
        recipe = PromptRecipe.of(caption, self.family.identity, self.encoding.dtype)
        self.store.require([recipe])
        names = ("prompt_embeds", *self.family.prompt_extras)
        tensors = {name: self.store.locate("prompt", name, [recipe.key]).read(0) for name in names}
        return Conditioning.of([tensors], self.family.prompt_length)

    def setup(self, stage: str) -> None:
        """Make sure of the split and, before long training, of what the trainer must leave alone."""
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

    def sampler(self, num_replicas: int, rank: int) -> ResolutionBatchSampler:
        """The endless order of training batches of one rank, from where a checkpoint was."""
        return ResolutionBatchSampler(
            [self.buckets.index(clip.bucket) for clip in self.train_clips],
            self.batch_sizes,
            num_replicas=num_replicas,
            rank=rank,
            seed=self.seed,
            start=self._position,
            small_bucket=self.batching.small_bucket,
            bucket_names=[str(bucket) for bucket in self.buckets],
        )

    @property
    def samples_per_batch(self) -> float:
        """Samples of a micro-batch over all ranks, on average over the buckets."""
        return self.sampler(*self._ranks()).mean_batch_size

    def train_dataloader(self) -> Loader:
        """Endless batches of exactly ``batches.size`` samples, going on from where a checkpoint was."""
        replicas, rank = self._ranks()
        sampler = self.sampler(replicas, rank)
        for number, num_clips in sampler.small_buckets.items():
            rank_zero_warn(
                f"bucket {self.buckets[number]} holds {num_clips} training clips, fewer than the "
                f"{self.batch_sizes[number] * replicas} of a batch: its batches are filled by "
                f"{self.batching.small_bucket}"
            )
        return self._loader(self.dataset(self.train_clips, for_training=True), sampler)

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
        replicas, rank = self._ranks()
        buckets = [self.buckets.index(clip.bucket) for clip in clips]
        order = BucketSequence(buckets, self.val_batch_sizes, num_replicas=replicas, rank=rank, even=replicas > 1)
        return self._loader(self.dataset(clips), order)

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

    def _ranks(self) -> tuple[int, int]:
        """Ranks that hold different samples, and which of them this is: tensor-parallel peers share theirs."""
        spread = self.trainer.distributed_sampler_kwargs if self.trainer is not None else None
        return (int(spread["num_replicas"]), int(spread["rank"])) if spread else (1, 0)

    def _global_batch_sizes(self) -> dict[str, int]:
        replicas, _ = self._ranks()
        return {str(bucket): size * replicas for bucket, size in zip(self.buckets, self.batch_sizes, strict=True)}

    # -- state: one number, the position in the endless sequence of global micro-batches

    def state_dict(self) -> dict[str, Any]:
        """Batches trained on so far, and the size that makes the number mean something."""
        assert self.trainer is not None
        return {
            "position": self.trainer.fit_loop.epoch_loop.total_batch_idx + 1,
            "global_batch_sizes": self._global_batch_sizes(),
            "affordable_val_clips": self.affordable_val_clips,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after the last batch of a checkpoint.

        Raises:
            UserError: the global batch is another one, so that the number would point elsewhere.
        """
        here, there = self._global_batch_sizes(), state_dict["global_batch_sizes"]
        if self.trainer is not None and self.trainer.state.fn == "fit" and here != there:
            raise UserError(
                f"the checkpoint was trained with {there} samples a micro-batch over all ranks (by bucket), here it is "
                f"{here}: set --data.batches.size so that size x ranks is the same, with the same buckets."
            )
        self._position = state_dict["position"]
        self.affordable_val_clips = state_dict.get("affordable_val_clips")
