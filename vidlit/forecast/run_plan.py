"""What a run will do, before it does anything: clips used and left out, batches, exposures, cost."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError
from vidlit.latents.encoding import num_cores
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, band, forecast, video_exposures
from vidlit.stopping.schedule import CheckSchedule, check_schedule

if TYPE_CHECKING:
    from vidlit.data.clip_folder import ClipFolder
    from vidlit.video.sources import Clip

KFOLD_UP_TO, REFIT_UP_TO = 20, 50
"""Recordings of a set that is small: docs/guides/small_sets.md says why."""
TYPICAL_STOP = 60
"""Exposures of each recording when a run stops by itself: the median of the 32 of 40 runs on real clips that did, 34 to
112 (LoRA 73, from scratch 56): stop x batch / recordings in ``benchmarks/stopping/results/real_clips.md``."""
_TIMED = 4  # clips decoded to estimate the time of all


@dataclass(frozen=True)
class BucketPlan:
    """One resolution."""

    bucket: str
    clips: int
    train: int
    tokens: int
    """Latent positions the transformer sees of one clip."""
    repeats_per_batch: int
    """Samples of a batch that fill it up, because the bucket holds fewer training clips than a global batch."""
    merge_into: str
    """Bucket that its clips would fit in as well; empty where it holds enough, or none fits."""


@dataclass(frozen=True)
class RunPlan:
    """Everything that ``vidlit plan`` says."""

    source: str
    layout: str
    videos: int
    clips: int
    references: int
    """Distinct videos or images that clips are made from."""
    references_are_images: bool
    masked: int
    """Clips with a mask."""
    counts: dict[str, dict[str, int]]
    """Rows and clips that are used, dropped, quarantined; see :class:`vidlit.data.usage.Usage`."""
    buckets: list[BucketPlan]
    quarantined: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    shortened: list[dict[str, Any]]
    near_duplicates: list[dict[str, Any]]
    unlisted: list[str]
    skipped: dict[str, list[str]]
    """Other files and folders that are left alone, by what they are."""
    remarks: list[str]
    """What else is not used as it stands in the source."""
    crossing: list[str]
    """Clips that probably cross a cut."""
    silent: list[str]
    """Clips without sound, of a model that makes some."""
    split: dict[str, dict[str, int]]
    """Clips and recordings of each side."""
    validation_groups: list[str]
    """The recordings for validation, by name."""
    small_set: list[Literal["kfold", "refit"]]
    """What makes more of a small set than one fit does; empty where the set is large, or nothing is for validation."""
    batch_size: float
    """Mean over buckets, over all ranks and accumulated micro-batches."""
    max_steps: int
    steps_per_pass: float
    tokens_per_step: float
    exposures: dict[str, float]
    """Lowest, mean and highest exposures of a recording at ``max_steps``."""
    band: str
    checks: dict[str, float]
    """Their number, steps between the first and between the last ones, validation and training clips scored at each,
    and the share of the cost that they add."""
    advice: str
    conservative_max_steps: int
    moderate_max_steps: int
    typical_stop: dict[str, float]
    """The step at which runs typically stop, if not at ``max_steps`` before, exposures of a recording by then, and the
    share of the cost that checks add up to there."""
    encode: dict[str, float]
    """Clips and captions to encode, gigabytes that the clips take (their sound with them, captions not), seconds of
    decoding on this machine (the VAE not counted)."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def make_plan(
    data: ClipFolder,
    *,
    max_steps: int,
    num_replicas: int,
    accumulate: int,
    learning_rate: float,
    num_strata: int = 2,
    check_interval: int | None = None,
) -> RunPlan:
    """Plan a run from file headers and the store's index alone.

    Args:
        data: the folder, the buckets, the split.
        max_steps: planned optimizer steps.
        num_replicas: ranks that hold different samples.
        accumulate: micro-batches per optimizer step.
        learning_rate: its highest value.
        num_strata: noise levels at which a clip is scored at every check.
        check_interval: steps between checks; ``None`` chooses, as a fit would.

    Raises:
        UserError: the folder, the buckets or the split cannot be used.
    """
    folder, split = data.plan, data.split
    sampler = data.sampler(num_replicas, 0)
    exposures = video_exposures(
        sampler.exposures(max_steps * accumulate), [clip.source.group for clip in data.train_clips]
    )
    mean = sum(exposures.values()) / len(exposures)
    references = [clip.source.reference for clip in folder.clips if clip.source.reference is not None]
    batch_size = sampler.mean_batch_size * accumulate
    stop = max(1, min(max_steps, round(TYPICAL_STOP * len(exposures) / batch_size)))
    return RunPlan(
        source=str(folder.folder),
        layout=folder.layout,
        videos=len({clip.source.group for clip in folder.clips}),
        clips=len(folder.clips),
        references=len({reference.content for reference in references}),
        references_are_images=any(reference.is_image for reference in references),
        masked=sum(clip.source.mask is not None for clip in folder.clips),
        buckets=_buckets(data, num_replicas),
        counts=data.usage.counts(),
        quarantined=[
            *(asdict(bad) for bad in folder.quarantined),
            *({"video": clip.clip_id, "reason": clip.words} for clip in data.usage.quarantined_clips),
        ],
        dropped=[asdict(bad) for bad in folder.dropped],
        shortened=[asdict(short) for short in folder.shortened],
        near_duplicates=[asdict(pair) for pair in folder.near_duplicates],
        unlisted=list(folder.unlisted),
        skipped={what: list(names) for what, names in folder.skipped.items()},
        remarks=list(folder.remarks),
        crossing=list(folder.crossing),
        silent=list(folder.silent),
        split={
            side: {"clips": len(clips), "videos": len({clip.source.group for clip in clips})}
            for side, clips in split._asdict().items()
        },
        validation_groups=sorted({clip.source.group for clip in split.val}),
        small_set=_small_set(data),
        batch_size=batch_size,
        max_steps=max_steps,
        steps_per_pass=sampler.batches_per_pass / accumulate,
        tokens_per_step=_mean_tokens(data) * batch_size,
        exposures={"min": min(exposures.values()), "mean": mean, "max": max(exposures.values())},
        band=band(mean),
        checks=_checks(data, max_steps, batch_size, num_strata, check_interval),
        advice=forecast(max_steps, round(batch_size), len(exposures), learning_rate).reason,
        conservative_max_steps=max(1, math.floor(CONSERVATIVE * len(exposures) / batch_size + 1e-9)),
        moderate_max_steps=max(1, math.floor(MODERATE * len(exposures) / batch_size + 1e-9)),
        typical_stop={
            "exposures": stop * batch_size / len(exposures),
            "steps": stop,
            "checks_share": _checks(data, stop, batch_size, num_strata, check_interval)["share"],
        },
        encode=_encoding(data),
    )


def _small_set(data: ClipFolder) -> list[Literal["kfold", "refit"]]:
    recordings = len({clip.source.group for clip in (*data.split.train, *data.split.val)})
    if not data.split.val or data.splitting.fold is not None or data.splitting.train_on_val:
        return []
    return ["kfold", "refit"] if recordings <= KFOLD_UP_TO else ["refit"] if recordings <= REFIT_UP_TO else []


def _checks(
    data: ClipFolder, max_steps: int, batch_size: float, num_strata: int, interval: int | None
) -> dict[str, float]:
    held_out, train_eval = len(data.scored_clips), len(data.train_eval_clips)
    evaluations = (held_out + train_eval) * num_strata
    if interval is None:
        schedule = check_schedule(batch_size, evaluations)
    else:
        schedule = CheckSchedule(interval, doubles=False)
    steps = schedule.checks(max_steps)
    return {
        "count": len(steps),
        "first_interval": schedule.first,
        "last_interval": schedule.spacing(steps[-1] - 1),
        "held_out_clips": held_out,
        "train_eval_clips": train_eval,
        "share": schedule.share(evaluations, batch_size, max_steps),
    }


def _buckets(data: ClipFolder, num_replicas: int) -> list[BucketPlan]:
    train = Counter(clip.bucket for clip in data.train_clips)
    size = {bucket: each * num_replicas for bucket, each in zip(data.buckets, data.batch_sizes, strict=True)}
    rows = []
    for bucket, clips in data.plan.clips_per_bucket().items():
        short = 0 < train[bucket] < size[bucket]
        roomier = [
            other
            for other in train
            if other != bucket
            and train[other] >= size[other]
            and all(a <= b for a, b in zip(other, bucket, strict=True))
        ]
        rows.append(
            BucketPlan(
                bucket=str(bucket),
                clips=clips,
                train=train[bucket],
                tokens=bucket.tokens(data.family.compression[0], data.family.pixel_multiple),
                repeats_per_batch=size[bucket] - train[bucket] if short else 0,
                merge_into=str(max(roomier, key=math.prod)) if short and roomier else "",
            )
        )
    return rows


def _mean_tokens(data: ClipFolder) -> float:
    temporal, pixels = data.family.compression[0], data.family.pixel_multiple
    return sum(clip.bucket.tokens(temporal, pixels) for clip in data.train_clips) / len(data.train_clips)


def _encoding(data: ClipFolder) -> dict[str, float]:
    clips = {data.recipes.latent(clip): clip for clip in data.stored_clips}
    todo = [clips[recipe] for recipe in data.store.missing(list(clips))]
    captions = list(dict.fromkeys(caption for clip in data.plan.clips for caption in clip.source.captions))
    missing = data.store.missing([data.recipes.prompt(caption) for caption in captions])
    shapes = [data.family.stream_shapes(*clip.bucket) for clip in todo]
    if data.encoding.with_std:
        shapes += [{LATENTS: shape[LATENTS]} for shape in shapes]
    width = 4 if data.encoding.dtype == "float32" else 2
    size = sum(width * math.prod(each) for shape in shapes for each in shape.values())
    return {
        "clips": len(todo),
        "captions": len(missing),
        "gigabytes": size / 1e9,
        "decode_seconds": _decode_seconds(todo, data),
    }


def _decode_seconds(clips: Sequence[Clip], data: ClipFolder) -> float:
    """Extrapolated from a few clips, spread over the list."""
    workers, sample_rate = data.encoding.num_workers, data.family.sample_rate
    chosen = clips[:: math.ceil(len(clips) / _TIMED)] if clips else []
    reader = data.open_reader()
    began = time.monotonic()
    try:
        for clip in chosen:
            try:
                reader.read_clip(clip.request())
                if sample_rate is not None:
                    reader.read_sound(clip.request(), sample_rate)
            except UserError:
                continue  # encoding will say what is wrong with it
        seconds = time.monotonic() - began
    finally:
        reader.close()
    return seconds / max(1, len(chosen)) * len(clips) / (workers or num_cores())
