"""One audit: samples of fixed prompts and noise, compared with the prompts' own clips and with each other."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from numpy.typing import NDArray
from torch import Tensor

from vidlit.diffusion.batch import clip_key
from vidlit.errors import UserError
from vidlit.metrics.quality import Quality, quality
from vidlit.metrics.sample_distance import alikeness, coarse, distance, nearest_others
from vidlit.models.features import FeatureExtractor
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import COPIES_COUNT, COPIES_GAP, COPIES_RATIO_MIN, DIVERSITY_LOG_RATIO, QUALITY
from vidlit.sampling.rendering import (
    Sample,
    load_decoder,
    sample_name,
    to_frames,
    write_pair,
    write_sample,
    write_samples,
)
from vidlit.sampling.sampler import Chunk, Sampling, gather, own_randomness, sample_clips, share
from vidlit.stopping.copies import AuditHistory, judge_copies, suspects
from vidlit.stopping.lost_diversity import judge_diversity, log_variety
from vidlit.stopping.verdict import Verdict

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.buckets import Bucket
    from vidlit.video.sources import Clip

PREFIX = "audit_"
"""Audited samples may lie in one folder with the samples of the kept weights."""
MAX_TRAIN_CLIPS = 4096
"""Training clips that distances of sets are taken to; reading all of a large set would take longer than training."""
MAX_OWN_CLIPS = 64
"""Clips that samples are looked for in, over all captions: where many clips share one, the nearest of some counts."""
MAX_MEAN_CLIPS = 64
"""Clips of a bucket whose mean stands for all: more change it by less than a hundredth of their spread."""
MIN_RECORDINGS = 4
"""Held-out recordings from which their prompts alone tell how varied samples are (docs/science.md)."""
MAX_PAIRS = 4
"""Copies that are shown beside the clip they were copied from, the worst first."""


class RealClips(NamedTuple):
    """What samples are compared with."""

    coarse: list[Tensor]
    """coarse video (3, F, h, w) of each of the prompts' clips"""
    others: Tensor
    """(K,), distance from each to the nearest one of another recording; infinite where there is none"""
    latents: dict[int, Tensor]
    """(C, F, H, W) of the clips whose prompts tell diversity, by prompt"""
    means: dict[Bucket, Tensor]
    """(C, F, H, W), the mean clip of each bucket"""
    features: Tensor
    """(N, D) of training clips, for distances of sets; empty where none are asked for"""


class Audit:
    """Samples the same prompts again and again and remembers how near they come to their clips, and to each other.

    Args:
        datamodule: training clips and the latents of all.
        extractor: what sets of clips are compared by, for ``metrics``.
        num_clips: to generate, half from training captions; all of them without validation clips.
        sampling: steps, seed and guidance.
        metrics: distances between the set of samples and the training clips to compute as well.
        held_out: clips that were not trained on; ``None`` for those of the validation.
    """

    def __init__(
        self,
        datamodule: Any,
        extractor: FeatureExtractor,
        num_clips: int,
        sampling: Sampling,
        metrics: Sequence[Quality] = (),
        held_out: Sequence[Clip] | None = None,
    ) -> None:
        self.datamodule = datamodule
        self.extractor = extractor
        self.sampling = sampling
        self.metrics = metrics
        self.quality: dict[str, float] = {}
        self.held_out = datamodule.val_clips if held_out is None else held_out
        num_held_out = num_clips // 2 if self.held_out else 0
        prompts = [
            *_prompts(datamodule.train_clips, num_clips - num_held_out),
            *_prompts(self.held_out, num_held_out),
        ]
        self.clips, self.draws = [clip for clip, _ in prompts], [draw for _, draw in prompts]
        self.trained = [number < len(prompts) - num_held_out for number in range(len(prompts))]
        self.own_clips, self.own = self._own()
        """Clips that have the prompts' captions, and which of them each prompt asks for: its side's, of its size."""
        self.steps: list[int] = []
        self.distances: list[Tensor] = []
        self.ratios: list[Tensor] = []
        self.nearest: list[int] = []
        """The nearest of ``own_clips`` to each sample of the latest audit."""
        self.varieties: list[float] = []
        self._real: RealClips | None = None

    def _own(self) -> tuple[list[Clip], list[list[int]]]:
        """What :attr:`own_clips` and :attr:`own` hold; of a caption that many clips share, a spread of them."""
        each = max(1, MAX_OWN_CLIPS // len({clip.source.caption for clip in self.clips}))
        found: list[list[Clip]] = []
        wanted = {(clip.source.caption, clip.bucket) for clip in self.clips}
        sides: list[dict[Any, list[Clip]]] = [defaultdict(list), defaultdict(list)]
        for clips, by_caption in zip((self.held_out, self.datamodule.train_clips), sides, strict=True):
            for one in clips:  # of a million clips, once
                if (asked := (one.source.caption, one.bucket)) in wanted:
                    by_caption[asked].append(one)
        for clip, trained in zip(self.clips, self.trained, strict=True):
            alike = sides[trained][clip.source.caption, clip.bucket]
            found.append(
                list({one.clip_id: one for one in (clip, *self.datamodule.spread(alike, each))}.values())[:each]
            )
        pool = list({one.clip_id: one for clips in found for one in clips}.values())
        place = {one.clip_id: number for number, one in enumerate(pool)}
        return pool, [[place[one.clip_id] for one in clips] for clips in found]

    @property
    def telling(self) -> list[int]:
        """Prompts whose samples tell diversity: the held-out ones, and where their recordings are few all."""
        held_out = [row for row, trained in enumerate(self.trained) if not trained]
        few = len({self.clips[row].source.group for row in held_out}) < MIN_RECORDINGS
        return list(range(len(self.clips))) if few else held_out

    # -- measuring

    @torch.no_grad()
    def prepare(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:
        """Read the real clips, once."""
        if self._real is None:
            with own_randomness(pl_module.device):
                self._real = self._read_real(trainer, pl_module)

    @torch.no_grad()
    def run(self, trainer: Trainer, pl_module: VideoDiffusionModule, step: int, folder: Path | None) -> None:
        """Generate, compare, remember, write and log. Every rank makes its share.

        Args:
            trainer: whose ranks share the work.
            pl_module: the model.
            step: it was trained for.
            folder: to write the videos to; ``None`` for none.
        """
        assert self._real is not None, "prepare first"
        real, device = self._real, pl_module.device
        found = torch.zeros(len(self.clips), 2)
        latents: dict[int, Tensor] = {}
        features: list[Tensor] = []

        def compare(chunk: Chunk) -> None:
            near = torch.tensor(
                [self._nearest(row, video, real) for row, video in zip(chunk.mine, coarse(chunk.videos), strict=True)]
            )
            found[chunk.rows] = gather(near.to(device), len(chunk.rows), trainer).cpu()
            if any(row in real.latents for row in chunk.rows):
                made = gather(chunk.latents, len(chunk.rows), trainer).cpu()
                latents.update((row, video) for row, video in zip(chunk.rows, made, strict=True) if row in real.latents)
            if self.metrics:
                given = chunk.latents if self.extractor.reads == "latents" else chunk.videos
                features.append(gather(self.extractor(given), len(chunk.rows), trainer))

        with own_randomness(device):
            vae = load_decoder(pl_module)
            samples = sample_clips(
                trainer, pl_module, self.datamodule, self.clips, self.sampling, step, vae, self.draws, look=compare
            )
            self.steps.append(step)
            self.distances.append(found[:, 0])
            self.nearest = found[:, 1].long().tolist()
            others = real.others[self.nearest]
            known = others.isfinite() & (others > 0)
            self.ratios.append(torch.where(known, found[:, 0] / others, torch.nan))
            self.varieties.append(log_variety(self._alikeness(latents, real), self._alikeness(real.latents, real)))
            if self.metrics:
                self.quality = quality(self.metrics, torch.cat(features), real.features, self.sampling.seed)
            if trainer.is_global_zero and folder is not None:
                self._describe_nearest(samples)
                write_samples(folder, samples, pl_module.family.fps, PREFIX)
                self._write_pairs(folder, samples, pl_module, vae)
                self._write_near_clips(folder.parent / "clips", pl_module, vae)

    def show(self, trainer: Trainer, pl_module: VideoDiffusionModule, step: int, folder: Path) -> None:
        """Generate and write the same videos as :meth:`run`, and remember nothing.

        Args:
            trainer: whose ranks share the work.
            pl_module: the model.
            step: it was trained for.
            folder: to write the videos to.
        """
        with own_randomness(pl_module.device):
            vae, data = load_decoder(pl_module), self.datamodule
            samples = sample_clips(trainer, pl_module, data, self.clips, self.sampling, step, vae, self.draws)
        if trainer.is_global_zero:
            write_samples(folder, samples, pl_module.family.fps, PREFIX)

    def _nearest(self, row: int, video: Tensor, real: RealClips) -> tuple[float, float]:
        """Distance from a coarse sample to the nearest clip of its prompt, and which that is."""
        own = torch.stack([real.coarse[number] for number in self.own[row]]).to(video.device)
        value, place = distance(video[None], own).min(0)
        return float(value), float(self.own[row][int(place)])

    def _alikeness(self, latents: dict[int, Tensor], real: RealClips) -> float:
        rows = sorted(latents)
        means = [real.means[self.clips[row].bucket] for row in rows]
        return alikeness([latents[row] for row in rows], means, [self.clips[row].source.group for row in rows])

    def _write_pairs(self, folder: Path, samples: Sequence[Sample], pl_module: VideoDiffusionModule, vae: Any) -> None:
        """Each suspect beside the clip that it is nearest to, decoded from its latents."""
        for row in suspects(self.history())[:MAX_PAIRS]:
            clip = self.own_clips[self.nearest[row]]
            frames = self._frames_of(clip, pl_module, vae)
            captions = (f"sampled: {self.clips[row].source.caption}", f"training clip {clip.clip_id}")
            write_pair(folder, _pair_name(row), samples[row].frames, frames, captions, pl_module.family.fps)

    def _write_near_clips(self, folder: Path, pl_module: VideoDiffusionModule, vae: Any) -> None:
        """The clips that samples are nearest to, decoded from their latents, each once: pages show both."""
        for number in sorted(set(self.nearest)):
            clip, path = self.own_clips[number], folder / f"clip_{number:03d}.mp4"
            note = path.with_suffix(".json")
            if not path.is_file() or not note.is_file() or json.loads(note.read_text()).get("clip") != clip.clip_id:
                folder.mkdir(parents=True, exist_ok=True)
                described = {"prompt": clip.source.caption, "clip": clip.clip_id}
                write_sample(path, Sample(self._frames_of(clip, pl_module, vae), described), pl_module.family.fps)

    def _frames_of(self, clip: Clip, pl_module: VideoDiffusionModule, vae: Any) -> NDArray[np.uint8]:
        latents = self.datamodule.dataset([clip])[0].latents[None].to(pl_module.device).float()
        return to_frames(pl_module.family.decode_latents(vae, latents)[0])

    def _describe_nearest(self, samples: Sequence[Sample]) -> None:
        """Say in a sample's file whose prompt it was made from, and which clip it came nearest to."""
        for row, sample in enumerate(samples):
            ratio = float(self.ratios[-1][row])
            sample.metadata.update(
                side="train" if self.trained[row] else "val",
                nearest_clip=self.own_clips[self.nearest[row]].clip_id,
                distance_ratio=ratio if math.isfinite(ratio) else None,
            )

    def _read_real(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> RealClips:
        """The prompts' own clips, the mean of their buckets and, for distances of sets, features of training clips."""
        vae = load_decoder(pl_module)
        own, dataset = self.datamodule.dataset(self.own_clips), self.datamodule.dataset(self.clips)
        decoded = [
            coarse(pl_module.family.decode_latents(vae, own[row].latents[None].to(pl_module.device).float()))[0].cpu()
            for row in range(len(self.own_clips))
        ]
        buckets = dict.fromkeys(clip.bucket for clip in self.clips)
        return RealClips(
            decoded,
            nearest_others(decoded, [clip.source.group for clip in self.own_clips]),
            {row: dataset[row].latents.float() for row in self.telling},
            {bucket: self._mean(bucket) for bucket in buckets},
            self._describe(trainer, pl_module, vae) if self.metrics else torch.zeros(0, 0),
        )

    def _mean(self, bucket: Bucket) -> Tensor:
        """Mean latents (C, F, H, W) of clips of a bucket, trained on and held out."""
        alike = [clip for clip in (*self.datamodule.train_clips, *self.held_out) if clip.bucket == bucket]
        dataset = self.datamodule.dataset(self.datamodule.spread(alike, MAX_MEAN_CLIPS))
        return torch.stack([dataset[row].latents.float() for row in range(len(dataset))]).mean(0)

    def _describe(self, trainer: Trainer, pl_module: VideoDiffusionModule, vae: Any) -> Tensor:
        """Features of training clips, of a large set of some, each rank reading its share."""
        clips = self.datamodule.spread(self.datamodule.train_clips, MAX_TRAIN_CLIPS)
        dataset = self.datamodule.dataset(clips)
        found = []
        for place in share(len(clips), trainer):
            videos = dataset[place % len(clips)].latents[None].to(pl_module.device).float()
            if self.extractor.reads == "frames":
                videos = pl_module.family.decode_latents(vae, videos)
            found.append(self.extractor(videos))
        return gather(torch.cat(found), len(clips), trainer)

    # -- judging

    def history(self) -> AuditHistory:
        """All audits so far."""
        return AuditHistory(
            steps=tuple(self.steps),
            distances=torch.stack(self.distances).double().numpy(),
            ratios=torch.stack(self.ratios).double().numpy(),
            trained=np.array(self.trained),
            groups=tuple(clip.source.group for clip in self.clips),
        )

    def copies(self, folder: Path | None = None) -> Verdict:
        """Are samples copies of training clips?

        Args:
            folder: the videos are in, from the run directory; ``None`` for that of the latest step.
        """
        if not self.steps:
            return Verdict("copies", "continue", "No clips were sampled yet.")
        where = (folder or RunDirectory(Path()).samples(self.steps[-1])).as_posix()
        names = tuple(f"{where}/{sample_name(k, clip.source.caption, PREFIX)}" for k, clip in enumerate(self.clips))
        history = self.history()
        verdict = judge_copies(history, names, tuple(self.own_clips[number].clip_id for number in self.nearest))
        for row in suspects(history)[:1]:  # none where ratios have no meaning
            pair = f"{where}/{_pair_name(row)}"
            verdict.evidence.update(pair=f"{pair}.mp4", pair_picture=f"{pair}.png")
        return verdict

    def diversity(self) -> Verdict:
        """Do samples lose diversity?"""
        if not self.steps:
            return Verdict("diversity", "continue", "No clips were sampled yet.")
        return judge_diversity(self.steps, self.varieties, any(self.trained[row] for row in self.telling))

    def numbers(self) -> dict[str, float]:
        """What is logged of the latest audit."""
        found = self.copies().evidence, self.diversity().evidence
        rows = (
            {COPIES_COUNT: "copies", COPIES_GAP: "gap", COPIES_RATIO_MIN: "ratio_min"},
            {DIVERSITY_LOG_RATIO: "log_ratio"},
        )
        named = {
            row.name: evidence[key]
            for names, evidence in zip(rows, found, strict=True)
            for row, key in names.items()
            if key in evidence
        }
        named |= {QUALITY[name].name: value for name, value in self.quality.items()}
        return {name: float(value) for name, value in named.items()}

    # -- state: tensors and numbers only, so that checkpoints load with weights_only

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to judge as the uninterrupted one."""
        return {
            "keys": self._keys(),
            "steps": self.steps,
            "distances": torch.stack(self.distances) if self.distances else torch.zeros(0, len(self.clips)),
            "ratios": torch.stack(self.ratios) if self.ratios else torch.zeros(0, len(self.clips)),
            "nearest": self.nearest,
            "varieties": self.varieties,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint remembers.

        Raises:
            UserError: it audited other clips.
        """
        if not torch.equal(state["keys"], self._keys()):
            raise UserError(
                f"The checkpoint audited {len(state['keys'])} samples of other clips, noise or steps, here there are "
                f"{len(self.clips)}: they cannot be compared. Use the same data, split and samples options, or start "
                "a new run."
            )
        self.steps, self.varieties = list(state["steps"]), list(state["varieties"])
        self.distances, self.ratios = list(state["distances"]), list(state["ratios"])
        self.nearest = list(state["nearest"])

    def _keys(self) -> Tensor:
        how = f"{self.sampling.seed}:{self.sampling.num_steps}:{self.sampling.guidance_scale:g}"
        names = [f"{clip.clip_id}:{draw}:{how}" for clip, draw in zip(self.clips, self.draws, strict=True)]
        return torch.tensor([clip_key(name) for name in names], dtype=torch.int64)


def one_a_caption(clips: Sequence[Clip]) -> list[Clip]:
    """The first clip of each caption: clips of one recording would give one prompt many times."""
    first = {clip.source.caption: clip for clip in reversed(clips)}
    return [clip for clip in clips if first[clip.source.caption] is clip]


def _prompts(clips: Sequence[Clip], count: int) -> list[tuple[Clip, int]]:
    """Clips to prompt with, and which draw of noise each is: all captions once, spread, before any comes again."""
    by_caption: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        by_caption[clip.source.caption].append(clip)
    in_turn = [clip for turn in zip_longest(*by_caption.values()) for clip in turn if clip is not None]
    if len(by_caption) > count:
        scenes = list(by_caption.values())
        in_turn = [scenes[k * len(scenes) // count][0] for k in range(count)]
    return [(clip, number // len(in_turn)) for number, clip in enumerate(islice(cycle(in_turn), count))]


def _pair_name(row: int) -> str:
    return f"{PREFIX}pair_{row:02d}"
