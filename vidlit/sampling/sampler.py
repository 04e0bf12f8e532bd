"""Videos from the captions of clips, shared out over ranks: what audits and the samples of a run are made with."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vidlit.data.batch_sampler import DataRanks
from vidlit.diffusion.conditions import GivenFrames, are_always_given
from vidlit.diffusion.noising import start_noise, stratum_given
from vidlit.diffusion.streams import LATENTS
from vidlit.sampling.rendering import Sample, to_frames, to_sound
from vidlit.sampling.sampling_progress import track_sampling

if TYPE_CHECKING:
    from vidlit.diffusion.batch import LatentBatch
    from vidlit.models.family import SoundDecoder
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.sound import Sound
    from vidlit.video.sources import Clip


@dataclass(frozen=True)
class Sampling:
    """How latents are drawn.

    Args:
        num_steps: number of denoising steps.
        seed: seed of the starting noise.
        guidance_scale: scale of guidance away from the negative prompt; 1 for none.
        negative_prompt: prompt that guidance steers away from.
    """

    num_steps: int
    seed: int
    guidance_scale: float
    negative_prompt: str

    @property
    def guided(self) -> bool:
        """Whether the negative prompt has a part."""
        return self.guidance_scale != 1.0

    def as_dict(self) -> dict[str, Any]:
        """What is written beside a video, without what has no part."""
        written = {"seed": self.seed, "num_steps": self.num_steps, "guidance_scale": self.guidance_scale}
        return {**written, "negative_prompt": self.negative_prompt} if self.guided else written


class Chunk(NamedTuple):
    """Videos that were made at once."""

    rows: list[int]
    """of all ranks"""
    mine: list[int]
    """of this rank; as many on every rank, so some may stand for the first ones again"""
    not_repeated: list[int]
    """places in ``mine`` of what no other rank made"""
    latents: Tensor
    """(len(mine), C, F, H, W)"""
    videos: Tensor
    """(len(mine), 3, F, H, W) in about [-1, 1]"""


@torch.no_grad()
def sample_clips(
    trainer: Trainer,
    pl_module: VideoDiffusionModule,
    datamodule: Any,
    clips: Sequence[Clip],
    sampling: Sampling,
    step: int,
    vae: Any,
    draws: Sequence[int] | None = None,
    look: Callable[[Chunk], None] | None = None,
    decode_sound: SoundDecoder | None = None,
) -> list[Sample]:
    """A video for each clip, from its caption and at its size; every rank makes its share.

    Those of an image-to-video model start from the clips' first frames, and those of a model that is always given some
    frames (``model.conditions`` with shares that sum to 1) from these.
    The start noise is keyed by (seed, clip, draw), so a video depends on nothing but these and the weights.

    Args:
        trainer: whose ranks and precision are used.
        pl_module: the model; its mode and the global generators are put back.
        datamodule: where the prompts are.
        clips: whose captions to sample.
        sampling: steps, seed and guidance.
        step: of the weights, to be written beside the videos.
        vae: of the family, to decode with.
        draws: numbers that tell videos of the same clip apart; all 0 by default.
        look: called on every rank with each chunk.
        decode_sound: of the family; ``None`` for silent samples.

    Returns:
        All videos, in order, on rank 0; on the others nothing.
    """
    draws = draws or [0] * len(clips)
    samples: dict[int, Sample] = {}
    with own_randomness(pl_module.device):
        dataset = datamodule.dataset(clips)
        chunks = list(_of_one_bucket(clips, datamodule, DataRanks.of(trainer).size))
        for rows in track_sampling(chunks, trainer.is_global_zero):
            places = share(len(rows), trainer)
            mine = [rows[place % len(rows)] for place in places]
            noise = _start_noise(pl_module, dataset, clips, mine, draws, sampling.seed)
            batch = dataset.read_batch(mine, pl_module.family.prompt_length)
            conditioning = batch.conditioning.to(pl_module.device)
            given = _given_frames(pl_module, batch)
            null = None
            if sampling.guided:
                null = datamodule.prompt(sampling.negative_prompt).to(pl_module.device).instead_of(conditioning)
            with trainer.precision_plugin.forward_context():
                streams = pl_module.sample(
                    noise, conditioning, sampling.num_steps, null, sampling.guidance_scale, given
                )
            latents = streams[LATENTS]
            videos = pl_module.family.decode_latents(vae, latents)
            not_repeated = [k for k, place in enumerate(places) if place < len(rows)]  # the rest are there to keep step
            if look is not None:
                look(Chunk(rows, mine, not_repeated, latents, videos))
            pixels = torch.stack([torch.from_numpy(to_frames(video)) for video in videos])
            made = gather(pixels.to(pl_module.device), len(rows), trainer).cpu().numpy()
            sounds: list[Sound | None] = [None] * len(rows)
            if decode_sound is not None:
                heard, rate = decode_sound(streams)
                sounds = [to_sound(each, rate) for each in gather(heard, len(rows), trainer)]
            if trainer.is_global_zero:
                for row, frames, sound in zip(rows, made, sounds, strict=True):
                    described = _describe(pl_module, clips[row], draws[row], sampling, step)
                    samples[row] = Sample(frames, described, sound)
    return [samples[row] for row in range(len(clips))] if trainer.is_global_zero else []


def _of_one_bucket(clips: Sequence[Clip], datamodule: Any, num_replicas: int) -> Iterator[list[int]]:
    """Rows of one bucket at a time, no more on a rank than validation scores at once."""
    sizes = dict(zip(datamodule.buckets, datamodule.val_batch_sizes, strict=True))
    by_bucket: dict[Any, list[int]] = defaultdict(list)
    for row, clip in enumerate(clips):
        by_bucket[clip.bucket].append(row)
    for bucket, rows in by_bucket.items():
        size = sizes[bucket] * num_replicas
        yield from (rows[first : first + size] for first in range(0, len(rows), size))


def _start_noise(
    pl_module: VideoDiffusionModule,
    dataset: Any,
    clips: Sequence[Clip],
    rows: Sequence[int],
    draws: Sequence[int],
    seed: int,
) -> dict[str, Tensor]:
    # The first draw is keyed as it was before there were others.
    keys = [[seed, int(dataset.keys[row]), *([draws[row]] if draws[row] > 0 else [])] for row in rows]
    noise = start_noise("sample", keys, pl_module.family.stream_shapes(*clips[rows[0]].bucket))
    return {name: start.to(pl_module.device) for name, start in noise.items()}


def _given_frames(pl_module: VideoDiffusionModule, batch: LatentBatch) -> GivenFrames | None:
    """The clips' own frames, as validation gives them at the lowest noise level, where the model always has some."""
    conditions = pl_module.conditions
    if not are_always_given(conditions):
        return None
    mask = stratum_given(conditions, pl_module.seed, batch.keys, 0, batch.latents.shape[2])
    return GivenFrames(batch.latents, mask).to(pl_module.device)


def _describe(pl_module: VideoDiffusionModule, clip: Clip, draw: int, sampling: Sampling, step: int) -> dict[str, Any]:
    return {
        "prompt": clip.source.caption,
        **sampling.as_dict(),
        "clip": clip.clip_id,
        "draw": draw,
        "size": str(clip.bucket),
        "fps": pl_module.family.fps,
        "base": pl_module.base,
        "step": step,
    }


def share(count: int, trainer: Trainer) -> range:
    """Places of this rank's part of ``count`` things; as many on every rank, so that none waits forever.

    A place from ``count`` on stands for the thing at ``place % count`` again.
    """
    ranks = DataRanks.of(trainer)
    return range(ranks.rank, -(-count // ranks.size) * ranks.size, ranks.size)


def gather(part: Tensor, count: int, trainer: Trainer) -> Tensor:
    """What all ranks made of their shares (K, ...), in order (count, ...)."""
    parts = trainer.strategy.all_gather(part).reshape(trainer.world_size, *part.shape)[:: DataRanks.of(trainer).peers]
    return parts.transpose(0, 1).flatten(0, 1)[:count]


def own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Put the global generators back afterwards: loading a model may draw from them."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])
