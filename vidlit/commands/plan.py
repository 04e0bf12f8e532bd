"""What a run will do, before it does anything: clips used and left out, batches, exposures, cost."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from vidlit.errors import UserError
from vidlit.latents.recipe import PromptRecipe
from vidlit.stopping.exposure import CONSERVATIVE, MODERATE, band, forecast, video_exposures
from vidlit.stopping.schedule import check_schedule, check_share
from vidlit.video.isolation import IsolatedReader

if TYPE_CHECKING:
    from vidlit.data.datamodule import LatentDataModule
    from vidlit.video.sources import Clip

_TIMED = 4  # clips decoded to estimate the time of all
_LISTED = 8  # reasons shown of each kind; --json has them all


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
    buckets: list[BucketPlan]
    quarantined: list[dict[str, Any]]
    dropped: list[dict[str, Any]]
    shortened: list[dict[str, Any]]
    near_duplicates: list[dict[str, Any]]
    unlisted: list[str]
    split: dict[str, dict[str, int]]
    """Clips and source videos of each side."""
    batch_size: float
    """Mean over buckets, over all ranks and accumulated micro-batches."""
    max_steps: int
    steps_per_pass: float
    tokens_per_step: float
    exposures: dict[str, float]
    """Lowest, mean and highest exposures of a source video at ``max_steps``."""
    band: str
    checks: dict[str, float]
    """Steps between checks, their number, held-out clips scored at each, and the share of the cost that they add."""
    advice: str
    conservative_max_steps: int
    moderate_max_steps: int
    encode: dict[str, float]
    """Clips and captions to encode, gigabytes they take, seconds of decoding on this machine (the VAE not counted)."""

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return asdict(self)


def make_plan(
    data: LatentDataModule,
    *,
    max_steps: int,
    num_replicas: int,
    accumulate: int,
    learning_rate: float,
    num_strata: int = 4,
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
    batch_size = sampler.mean_batch_size * accumulate
    return RunPlan(
        source=str(folder.folder),
        layout=folder.layout,
        videos=len({clip.source.group for clip in folder.clips}),
        clips=len(folder.clips),
        buckets=_buckets(data, num_replicas),
        quarantined=[asdict(bad) for bad in folder.quarantined],
        dropped=[asdict(bad) for bad in folder.dropped],
        shortened=[asdict(short) for short in folder.shortened],
        near_duplicates=[asdict(pair) for pair in folder.near_duplicates],
        unlisted=list(folder.unlisted),
        split={
            side: {"clips": len(clips), "videos": len({clip.source.group for clip in clips})}
            for side, clips in split._asdict().items()
        },
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
        encode=_encoding(data),
    )


def _checks(
    data: LatentDataModule, max_steps: int, batch_size: float, num_strata: int, interval: int | None
) -> dict[str, float]:
    num_clips = len(data.scored_clips) or -(-len(data.train_eval_clips) // 2)
    if interval is None:
        chosen = check_schedule(max_steps, batch_size, num_clips, num_strata)
        interval, num_clips, share = chosen.interval, chosen.num_clips, chosen.share
    else:
        share = check_share(interval, batch_size, num_clips, num_strata)
    held_out = num_clips if data.scored_clips else 0
    return {"interval": interval, "count": max(0, max_steps) // interval, "held_out_clips": held_out, "share": share}


def _buckets(data: LatentDataModule, num_replicas: int) -> list[BucketPlan]:
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


def _mean_tokens(data: LatentDataModule) -> float:
    temporal, pixels = data.family.compression[0], data.family.pixel_multiple
    return sum(clip.bucket.tokens(temporal, pixels) for clip in data.train_clips) / len(data.train_clips)


def _encoding(data: LatentDataModule) -> dict[str, float]:
    identity = data.family.identity
    clips = dict(zip(data.latent_recipes(), data.plan.clips, strict=True))
    todo = [clips[recipe] for recipe in data.store.missing(list(clips))]
    captions = list(dict.fromkeys(clip.source.caption for clip in data.plan.clips))
    missing = data.store.missing([PromptRecipe.of(caption, identity, data.dtype) for caption in captions])
    width = (4 if data.dtype == "float32" else 2) * (1 + data.with_std)
    size = sum(width * math.prod(data.family.latent_shape(*clip.bucket)) for clip in todo)
    return {
        "clips": len(todo),
        "captions": len(missing),
        "gigabytes": size / 1e9,
        "decode_seconds": _decode_seconds(todo, data.encode_workers),
    }


def _decode_seconds(clips: Sequence[Clip], workers: int | None) -> float:
    """Extrapolated from a few clips, spread over the list."""
    chosen = clips[:: math.ceil(len(clips) / _TIMED)] if clips else []
    reader = IsolatedReader()
    began = time.monotonic()
    try:
        for clip in chosen:
            try:
                reader.read_clip(clip.source.path, clip.start, clip.bucket.num_frames, clip.fps, *clip.bucket[1:])
            except UserError:
                continue  # encoding will say what is wrong with it
        seconds = time.monotonic() - began
    finally:
        reader.close()
    return seconds / max(1, len(chosen)) * len(clips) / (workers or len(os.sched_getaffinity(0)))


def print_plan(plan: RunPlan, console: Console | None = None) -> None:
    """Show a plan to a person."""
    console = console or Console()
    console.print(f"{plan.source} ({plan.layout}): {plan.clips} clips of {plan.videos} source videos", highlight=False)
    table = Table("bucket")
    for name in ("clips", "train", "tokens each", "repeats a batch"):
        table.add_column(name, justify="right")
    table.add_column("could merge into")
    for row in plan.buckets:
        table.add_row(
            row.bucket, str(row.clips), str(row.train), str(row.tokens), str(row.repeats_per_batch), row.merge_into
        )
    console.print(table)
    for name, rows, line in (
        ("quarantined", plan.quarantined, "{video}: {reason}"),
        ("dropped", plan.dropped, "{video}: {reason}"),
        ("shortened", plan.shortened, "{video}: {used:.2f} of {total:.2f} s used"),
        ("near-duplicates, tied into one group", plan.near_duplicates, "{first} = {second} (group {group})"),
        ("in the folder but in no row", [{"video": video} for video in plan.unlisted], "{video}"),
    ):
        if rows:
            console.print(f"{len(rows)} {name}:", highlight=False)
            for row_ in rows[:_LISTED]:
                console.print("  " + line.format(**row_), highlight=False, soft_wrap=True, markup=False)
            if len(rows) > _LISTED:
                console.print(f"  ... {len(rows) - _LISTED} more (--json lists all)", highlight=False)
    sides = [f"{side} {n['clips']} clips of {n['videos']} videos" for side, n in plan.split.items() if n["clips"]]
    console.print(f"split by source video: {', '.join(sides)}", highlight=False, soft_wrap=True)
    console.print(
        f"{plan.max_steps:,} steps of {plan.batch_size:g} samples ({plan.tokens_per_step:,.0f} tokens), one pass over "
        f"the clips every {plan.steps_per_pass:.1f} steps",
        highlight=False,
        soft_wrap=True,
    )
    seen = plan.exposures
    console.print(
        f"exposures of a source video at the end: {seen['mean']:.1f} on average ({seen['min']} to {seen['max']}): "
        f"{plan.band}. Conservative up to {plan.conservative_max_steps:,} steps, moderate up to "
        f"{plan.moderate_max_steps:,}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(plan.advice, highlight=False, soft_wrap=True)
    checks = plan.checks
    console.print(
        f"checks: {checks['count']}, every {checks['interval']} steps, of {checks['held_out_clips']} held-out clips: "
        f"about {100 * checks['share']:.0f} % on top of the cost of training",
        highlight=False,
        soft_wrap=True,
    )
    todo = plan.encode
    console.print(
        f"to encode: {todo['clips']} clips and {todo['captions']} captions, {todo['gigabytes']:.3f} GB; decoding takes "
        f"about {todo['decode_seconds']:.0f} s here, the VAE comes on top",
        highlight=False,
        soft_wrap=True,
    )
