"""A folder of videos as training sees it: its clips, their buckets, the split, and the order of batches.

Nothing here needs Lightning: ``vidlit plan`` answers from this alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from vidlit.data.batch_sampler import ResolutionBatchSampler
from vidlit.data.batching import Batching
from vidlit.data.caption_variants import with_variants
from vidlit.data.identity import DataIdentity
from vidlit.data.split import Split, Splitting, split_by_video, spread_over_videos
from vidlit.data.usage import Usage
from vidlit.diffusion.batch import Conditioning
from vidlit.errors import UserError
from vidlit.latents.dataset import LatentDataset
from vidlit.latents.encoding import Encoding, QuarantinedClip, first_three
from vidlit.latents.recipe import LatentRecipe, PromptRecipe, Recipes
from vidlit.latents.storage.opening import StoreCache
from vidlit.latents.store import LatentStore
from vidlit.models.family import open_family
from vidlit.models.parts import AudioChoice
from vidlit.remote_files import as_url
from vidlit.stopping.schedule import scored_train_clips, scored_val_clips
from vidlit.video.buckets import Bucket, BucketBudget, BucketPolicy
from vidlit.video.cut import Cutting, DatasetPlan, plan_clips
from vidlit.video.isolation import IsolatedReader
from vidlit.video.remote_source import RemoteSource
from vidlit.video.sources import Clip

TRAIN_EVAL_ALONE = 16
"""Training clips that are scored where there are no validation clips."""


class ClipFolder:
    """A folder of videos as clips of few resolutions, on the sides of a split, with the store of their latents.

    Args:
        source: folder of videos with captions, in any of the accepted layouts; or the URL of one on object storage,
            such as ``s3://bucket/clips``.
        store: folder of encoded latents, or its URL; missing ones are encoded, the others reused.
        base: diffusers folder or hub name whose VAE and text encoder make the latents.
        buckets: resolutions as ``FRAMESxHEIGHTxWIDTH``, e.g. ``49x480x704``; or a policy that chooses them,
            such as a budget.
        fps: frame rate that clips are resampled to; ``None`` for the family's own.
        audio: sound that is encoded with them: that of ``model.audio``.
        references: whether every row names a reference, which is encoded, too: whether ``model.conditions`` has one.
        cutting: options for cutting videos into clips.
        split: options for splitting into training, validation and test.
        batches: size of batches, and how they are read.
        encoding: how clips and captions are encoded and stored.
        trigger: word or phrase put before the captions that do not have it: ``ohwx`` makes ``ohwx, a dog runs``;
            ``None`` to leave captions as they are.
        caption_variants: of rows with several captions training reads ``all``, one at each visit in turn, or the
            ``first``; validation and samples always use the first.
        unmasked_weight: weight in the loss, in training and validation, of what the mask of a clip leaves out, above 0
            and at most 1; a clip without a mask counts everywhere.
        further_captions: captions to encode beside those of the clips, such as the negative prompt of guided samples.
        cache: local copies of what is read from object storage.
        seed: seed of the split and of the order of clips.

    Raises:
        UserError: for anything wrong with the buckets; with the folder or the split, when they are first asked for.
    """

    def __init__(
        self,
        source: str | Path,
        store: str | Path,
        base: str,
        buckets: list[str] | BucketBudget | BucketPolicy,
        fps: float | None = None,
        audio: AudioChoice = "off",
        references: bool = False,
        cutting: Cutting = Cutting(),  # noqa: B008 - frozen, as the three below
        split: Splitting = Splitting(),  # noqa: B008
        batches: Batching = Batching(),  # noqa: B008
        encoding: Encoding = Encoding(),  # noqa: B008
        trigger: str | None = None,
        caption_variants: Literal["all", "first"] = "all",
        unmasked_weight: float = 0.1,
        further_captions: list[str] | None = None,
        cache: StoreCache = StoreCache(),  # noqa: B008
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.family = open_family(base, fps, audio)
        self.source = source
        url = as_url("data.source", source)
        self._remote_source = None if url is None else RemoteSource(url, cache.path)
        self.store = LatentStore(store, cache)
        self.buckets = self._make_buckets(buckets)
        self.cutting, self.splitting, self.batching, self.encoding = cutting, split, batches, encoding
        tokens = [bucket.tokens(self.family.compression[0], self.family.pixel_multiple) for bucket in self.buckets]
        self.batch_sizes, self.val_batch_sizes = batches.sizes(tokens), batches.val_sizes(tokens)
        """Of each bucket, on one rank."""
        self.references = references
        self.trigger = (trigger or "").strip() or None
        self.caption_variants = caption_variants
        self.unmasked_weight = unmasked_weight
        self.further_captions = further_captions or []
        self.seed = seed
        self._prompts: dict[str, Conditioning] = {}  # that were asked for
        if not 0 < unmasked_weight <= 1:
            raise UserError(
                f"data.unmasked_weight is {unmasked_weight:g}: it must be above 0, as something counts in every clip, "
                "and at most 1."
            )
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
        self.store.check_folder()  # before anything is written into it
        source = Path(self.source) if self._remote_source is None else self._remote_source.refresh()
        with self.store.storage.notes() as notes:
            plan = plan_clips(
                source,
                self.buckets,
                self.family.fps,
                self.cutting,
                trigger=self.trigger,
                first_captions=self.caption_variants == "first",
                tie_near_duplicates=self.splitting.tie_near_duplicates,
                with_sound=self.family.sample_rate is not None,
                with_references=self.references,
                cache=notes / "files.json",
                reader=self.open_reader,
            )
        if self._remote_source is not None:
            plan = replace(plan, folder=self._remote_source.files.address)
        if not plan.clips:
            reasons = [f"{bad.video}: {bad.reason}" for bad in (*plan.quarantined, *plan.dropped)]
            raise UserError(f"no clip of {self.source} can be used. {first_three(reasons, '; ')}")
        if len(plan.silent) == len(plan.clips):
            raise UserError(f"no clip of {self.source} has sound, for which model.audio asks: set it to off.")
        return plan

    @property
    def open_reader(self) -> Callable[[], IsolatedReader]:
        """Makes readers of the source's videos."""
        return IsolatedReader if self._remote_source is None else self._remote_source.open_reader

    @property
    def stored_clips(self) -> list[Clip]:
        """What has latents in the store: the plan's clips, then their references."""
        references = (clip.reference() for clip in self.plan.clips)
        return [*self.plan.clips, *(reference for reference in references if reference is not None)]

    @cached_property
    def recipes(self) -> Recipes:
        """What clips and captions are made of."""
        return Recipes(self.family.identity, self.encoding)

    @cached_property
    def _failed(self) -> dict[str, QuarantinedClip]:
        """Clips that could not be encoded, or whose reference could not be, by clip id."""
        quarantined = self.store.quarantined()
        failed = {}
        for clip in self.plan.clips if quarantined else ():
            reference = clip.reference()
            if (found := quarantined.get(self.recipes.latent(clip).key)) is not None:
                reason = found.reason
            elif reference is None or (found := quarantined.get(self.recipes.latent(reference).key)) is None:
                continue
            else:
                reason = f"its reference {reference.source.video} {found.reason}"
            failed[clip.clip_id] = QuarantinedClip(clip.clip_id, clip.source.video, reason, found.transient)
        return failed

    @cached_property
    def split(self) -> Split:
        """The clips of each side, without those that could not be encoded."""
        usable = [clip for clip in self.plan.clips if clip.clip_id not in self._failed]
        return split_by_video(usable, self.splitting, self.seed)

    @cached_property
    def clip_identity(self) -> DataIdentity:
        """Every clip of the split, with what makes it the one it is."""
        sides = ((side, clip) for side, clips in self.split._asdict().items() for clip in clips)
        return DataIdentity.of((side, clip, self._recipes_of(clip)) for side, clip in sides)

    def _recipes_of(self, clip: Clip) -> list[LatentRecipe | PromptRecipe]:
        """Of all that training reads of a clip."""
        made: list[LatentRecipe | PromptRecipe] = [self.recipes.latent(clip), self.recipes.prompt(clip.source.caption)]
        reference = clip.reference()
        return made if reference is None else [*made, self.recipes.latent(reference)]

    @cached_property
    def usage(self) -> Usage:
        """What becomes of every row and clip of the folder."""
        return Usage.of(self.plan, self._failed)

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

    @cached_property
    def scored_clips(self) -> list[Clip]:
        """Validation clips that are scored at every check."""
        groups = len({clip.source.group for clip in self.split.val})
        most = self.splitting.max_val_clips or scored_val_clips(groups)
        return self.spread(self.split.val, most) if most < len(self.split.val) else self.split.val

    @cached_property
    def train_eval_clips(self) -> list[Clip]:
        """Training clips that are scored as the validation ones are."""
        num_val = len(self.scored_clips)
        return self.spread(self.split.train, scored_train_clips(num_val) if num_val else TRAIN_EVAL_ALONE)

    def spread(self, clips: list[Clip], num_clips: int) -> list[Clip]:
        """Some of the clips, spread evenly over recordings; always the same."""
        return spread_over_videos(clips, num_clips, self.seed)

    def dataset(self, clips: list[Clip], *, for_training: bool = False) -> LatentDataset:
        """Encoded clips by row.

        Args:
            clips: of each row.
            for_training: with what training draws latents from, if it does, and after the clips their variants,
                see :func:`~vidlit.data.caption_variants.with_variants`.

        Raises:
            UserError: some are not encoded; names what differs from what is stored.
        """
        drawn = ("latents_std",) if for_training and self.encoding.with_std else ()
        rows = None
        if for_training:
            clips, rows = with_variants(clips)
        return LatentDataset.from_clips(
            self.store,
            clips,
            self.recipes,
            clip_extras=(*self.family.clip_extras, *drawn),
            prompt_extras=self.family.prompt_extras,
            rows=rows,
            unmasked_weight=self.unmasked_weight,
        )

    def prompt(self, caption: str) -> Conditioning:
        """A stored caption, as of one sample.

        Raises:
            UserError: it is not stored: it is neither a clip's nor one of ``further_captions``.
        """
        if caption not in self._prompts:
            recipe = self.recipes.prompt(caption)
            self.store.require([recipe])
            names = ("prompt_embeds", *self.family.prompt_extras)
            tensors = {name: self.store.locate("prompt", name, [recipe.key]).read(0) for name in names}
            self._prompts[caption] = Conditioning.of([tensors], self.family.prompt_length)
        return self._prompts[caption]

    def sampler(self, num_replicas: int, rank: int, start: int = 0) -> ResolutionBatchSampler:
        """The endless order of training batches of one rank.

        Args:
            num_replicas: ranks that hold different samples.
            rank: which of them.
            start: batches that are over.
        """
        return ResolutionBatchSampler(
            [self.buckets.index(clip.bucket) for clip in self.train_clips],
            self.batch_sizes,
            num_replicas=num_replicas,
            rank=rank,
            seed=self.seed,
            start=start,
            small_bucket=self.batching.small_bucket,
            bucket_names=[str(bucket) for bucket in self.buckets],
        )
