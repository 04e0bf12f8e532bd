"""One audit: clips from fixed prompts and noise, compared with the training set and with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from vidlit.diffusion.batch import clip_key
from vidlit.errors import UserError
from vidlit.metrics.copy_distance import CopyDistance, copy_ratio, nearest_train
from vidlit.metrics.diversity import Diversity, kernel_bandwidth, subset_bound
from vidlit.metrics.quality import Quality, quality
from vidlit.models.features import FeatureExtractor, Features
from vidlit.runs.directory import RunDirectory
from vidlit.runs.logged_names import COPIES_COUNT, COPIES_RATIO_MIN, DIVERSITY_RATIO, DIVERSITY_RKE, QUALITY
from vidlit.sampling.rendering import Sample, log_samples, sample_name, to_frames, write_pair, write_samples
from vidlit.sampling.sampler import Chunk, Sampling, gather, own_randomness, sample_clips, share
from vidlit.stopping.copies import copy_limit, judge_copies, min_copies, suspects
from vidlit.stopping.lost_diversity import judge_diversity
from vidlit.stopping.verdict import Verdict

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule
    from vidlit.video.sources import Clip

PREFIX = "audit_"
"""Audited samples may lie in one folder with the samples of the kept weights."""
MAX_TRAIN_CLIPS = 4096
"""Training clips that are read for the comparison; reading all of a large set would take longer than training."""
MAX_PAIRS = 4
"""Copies that are shown beside the clip they were copied from, the worst first."""


class RealClips(NamedTuple):
    """What generated clips are compared with."""

    train: Features
    groups: Tensor
    bandwidth: float
    """Of the diversity's kernel."""


class Audit:
    """Generates the same clips again and again and remembers how near they come to training clips, and to each other.

    Args:
        datamodule: training clips and the latents of all.
        extractor: what clips are compared by.
        num_clips: to generate, half from training captions; all of them without validation clips.
        sampling: steps, seed and guidance.
        metrics: distances between all samples and training clips to compute as well.
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
        self.train_clips = self._compared(datamodule)
        self.steps: list[int] = []
        self.ratios: list[Tensor] = []
        self.nearest: list[int] = []
        self.rke: list[float] = []
        self.limit = self.real_bound = 0.0
        self._real: RealClips | None = None

    def _compared(self, datamodule: Any) -> list[Clip]:
        """Training clips that samples are compared with: all, or of a large set those of the prompts and a spread."""
        if len(datamodule.train_clips) <= MAX_TRAIN_CLIPS:
            return list(datamodule.train_clips)
        prompted = {clip.source.group for clip in self.clips}
        own = [clip for clip in datamodule.train_clips if clip.source.group in prompted][: MAX_TRAIN_CLIPS // 2]
        spread = datamodule.spread(datamodule.train_clips, MAX_TRAIN_CLIPS - len(own))
        return list({clip.clip_id: clip for clip in [*own, *spread]}.values())

    # -- measuring

    @torch.no_grad()
    def prepare(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:
        """Read the real clips, once: the longer part where they must be decoded. Every rank reads its share."""
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
        copies = {
            "content": CopyDistance(real.train.content, real.groups).to(device),
            "motion": CopyDistance(real.train.motion, real.groups).to(device),
        }
        diversity = Diversity(real.train.content.shape[1], real.bandwidth).to(device)
        content: list[Tensor] = []

        def compare(chunk: Chunk) -> None:
            features = self.extractor(chunk.latents if self.extractor.reads == "latents" else chunk.videos)
            content.append(gather(features.content, len(chunk.rows), trainer))
            if once := chunk.not_repeated:
                numbers = torch.tensor([chunk.mine[k] for k in once], device=device)
                copies["content"].update(numbers, features.content[once])
                copies["motion"].update(numbers, features.motion[once])
                diversity.update(features.content[once])

        with own_randomness(device):
            vae = pl_module.family.load_vae(device)
            samples = sample_clips(
                trainer, pl_module, self.datamodule, self.clips, self.sampling, step, vae, self.draws, look=compare
            )
            self._remember(step, copies, diversity)
            self.quality = quality(self.metrics, torch.cat(content), real.train.content, self.sampling.seed)
            if trainer.is_global_zero and folder is not None:
                write_samples(folder, samples, pl_module.family.fps, PREFIX)
                log_samples(trainer, "audit", step, samples)
                self._write_pairs(folder, samples, pl_module, vae)

    def _write_pairs(self, folder: Path, samples: Sequence[Sample], pl_module: VideoDiffusionModule, vae: Any) -> None:
        """Each suspect beside the training clip it comes nearest to, decoded from its latents."""
        for row in self._suspects():
            real = self.train_clips[self.nearest[row]]
            latents = self.datamodule.dataset([real])[0].latents[None].to(pl_module.device).float()
            frames = to_frames(pl_module.family.decode_latents(vae, latents)[0])
            captions = (f"sampled: {self.clips[row].source.caption}", f"training clip {real.clip_id}")
            write_pair(folder, _pair_name(row), samples[row].frames, frames, captions, pl_module.family.fps)

    def _suspects(self) -> list[int]:
        return suspects(torch.stack(self.ratios).numpy(), self.limit)[:MAX_PAIRS]

    def _remember(self, step: int, copies: dict[str, CopyDistance], diversity: Diversity) -> None:
        content, motion = copies["content"].compute(), copies["motion"].compute()
        self.steps.append(step)
        self.ratios.append(copy_ratio(content.ratio, motion.ratio).view(-1).cpu())  # one clip: torchmetrics squeezes
        self.nearest = content.clip.view(-1).tolist()
        self.rke.append(float(diversity.compute()))

    def _read_real(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> RealClips:
        """Features of training and validation clips, and what follows from them: limit and bound."""
        vae = pl_module.family.load_vae(pl_module.device) if self.extractor.reads == "frames" else None
        train_clips = self.train_clips
        numbers = {group: k for k, group in enumerate(dict.fromkeys(clip.source.group for clip in train_clips))}
        groups = torch.tensor([numbers[clip.source.group] for clip in train_clips], device=pl_module.device)
        train = self._describe(trainer, pl_module, vae, train_clips)
        everything = train.content
        self.limit = copy_limit([])
        if self.held_out:
            held_out = self._describe(trainer, pl_module, vae, self.held_out)
            ratios = [nearest_train(*pair, groups).ratio for pair in zip(held_out, train, strict=True)]
            self.limit = copy_limit(copy_ratio(*ratios).cpu())
            everything = torch.cat([train.content, held_out.content])
        bandwidth = kernel_bandwidth(everything)
        if bandwidth:
            self.real_bound = subset_bound(everything, bandwidth, len(self.clips))
        # Where real clips do not differ, samples cannot be too much alike: the bound stays 0, and any scale will do.
        return RealClips(train, groups, bandwidth or 1.0)

    def _describe(self, trainer: Trainer, pl_module: VideoDiffusionModule, vae: Any, clips: Sequence[Clip]) -> Features:
        """Features of clips, each rank reading its share."""
        dataset = self.datamodule.dataset(clips)
        found = []
        for place in share(len(clips), trainer):
            videos = dataset[place % len(clips)].latents[None].to(pl_module.device).float()
            if vae is not None:
                videos = pl_module.family.decode_latents(vae, videos)
            found.append(self.extractor(videos))
        content, motion = (torch.cat(kind) for kind in zip(*found, strict=True))
        return Features(gather(content, len(clips), trainer), gather(motion, len(clips), trainer))

    # -- judging

    def copies(self, folder: Path | None = None) -> Verdict:
        """Are samples copies of training clips?

        Args:
            folder: the videos are in, from the run directory; ``None`` for that of the latest step.
        """
        if not self.steps:
            return Verdict("copies", "continue", "No clips were sampled yet.")
        where = (folder or RunDirectory(Path()).samples(self.steps[-1])).as_posix()
        names = [f"{where}/{sample_name(k, clip.source.caption, PREFIX)}" for k, clip in enumerate(self.clips)]
        nearest = [self.train_clips[clip].clip_id for clip in self.nearest]
        alarm = min_copies([clip.source.group for clip in self.datamodule.train_clips])
        verdict = judge_copies(self.steps, torch.stack(self.ratios).numpy(), self.limit, names, nearest, alarm)
        for row in self._suspects()[:1]:  # none where ratios have no meaning
            pair = f"{where}/{_pair_name(row)}"
            verdict.evidence.update(pair=f"{pair}.mp4", pair_picture=f"{pair}.png")
        return verdict

    def diversity(self) -> Verdict:
        """Do samples lose diversity?"""
        if not self.steps:
            return Verdict("diversity", "continue", "No clips were sampled yet.")
        return judge_diversity(self.steps, self.rke, self.real_bound)

    def numbers(self) -> dict[str, float]:
        """What is logged of the latest audit."""
        copies, diversity = self.copies().evidence, self.diversity().evidence
        named = {
            COPIES_COUNT.name: copies["copies"],
            DIVERSITY_RKE.name: diversity["rke"],
            DIVERSITY_RATIO.name: diversity["ratio"],
        }
        if "ratio_min" in copies:
            named[COPIES_RATIO_MIN.name] = copies["ratio_min"]
        named |= {QUALITY[name].name: value for name, value in self.quality.items()}
        return {name: float(value) for name, value in named.items()}

    # -- state: tensors and numbers only, so that checkpoints load with weights_only

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to judge as the uninterrupted one."""
        return {
            "keys": self._keys(),
            "steps": self.steps,
            "ratios": torch.stack(self.ratios) if self.ratios else torch.zeros(0, len(self.clips)),
            "nearest": self.nearest,
            "rke": self.rke,
            "limit": self.limit,
            "real_bound": self.real_bound,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint remembers.

        Raises:
            UserError: it audited other clips.
        """
        if not torch.equal(state["keys"], self._keys()):
            raise UserError(
                f"The checkpoint audited {len(state['keys'])} samples of other clips, draws or noise, here there are "
                f"{len(self.clips)}: they cannot be compared. Use the same data, split and samples options, or start "
                "a new run."
            )
        self.steps, self.nearest, self.rke = list(state["steps"]), list(state["nearest"]), list(state["rke"])
        self.ratios = list(state["ratios"])
        self.limit, self.real_bound = state["limit"], state["real_bound"]

    def _keys(self) -> Tensor:
        seed = self.sampling.seed
        names = [f"{clip.clip_id}:{draw}:{seed}" for clip, draw in zip(self.clips, self.draws, strict=True)]
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
