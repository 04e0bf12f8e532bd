"""Runs to measure stopping on, trained to the end of their plan whatever their curve does.

Every run trains :class:`vidlit.training.module.VideoDiffusionModule` under Lightning, the tiny default model. Where its
clips come from is a :class:`Source`: procedural ones here, real ones in :mod:`benchmarks.stopping.folder_clips`. At
each check a :class:`Recorder` scores, with the package's own losses, what the rule sees and what no user could score.

Procedural clips (:class:`World`) are scored as

- held-out clips at fixed noise, four strata a clip: what the rule sees; and the train probe likewise;
- the same held-out clips with fresh noise and sigmas, as many evaluations: what plain validation would see;
- 256 further held-out clips of as many source videos, which no rule sees: the oracle.

Three kinds of run: ``clips`` start from the untrained default base and see n clips over and over; ``fresh`` never see a
clip twice and must never be stopped; ``tuned`` start from a base trained on fresh clips and learn n clips of another
look (negative colours), so that gains are small and quick as in fine-tuning.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.stopping.real_runs import (
    BATCH_SIZE,
    FRESH_CLIPS,
    VAL_TAKES,
    VAL_VIDEOS,
    VIDEOS,
    WARMUP_STEPS,
    AnyPlan,
    Plan,
)
from vidlit.data.demo_clips import Scene
from vidlit.data.demo_folder import codec_inputs
from vidlit.data.passes import Passes
from vidlit.diffusion.batch import LatentBatch, LatentSample, clip_key, collate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import Noise, RectifiedFlow, keyed_generator, stratum_sigmas
from vidlit.diffusion.streams import LATENTS
from vidlit.metrics.paired_loss import log_ratio
from vidlit.models.adapters import LoRA
from vidlit.models.demo_base import write_base
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.training.module import VideoDiffusionModule

FRAMES, SIZE = 5, 48  # two latent frames of 3 x 3: a step costs 30 ms on one core
NOISING = RectifiedFlow()
ORACLE_VIDEOS, ORACLE_STRATA, ORACLE_GROUPS = 256, 1, 8
TRAIN, VAL, ORACLE, FRESH = 2_000_000, 3_000_000, 4_000_000, 5_000_000  # numbers of scenes, far from any other use


@dataclass(frozen=True)
class ScoredSet:
    """Clips that are scored at checks, each at its own fixed noise and sigmas.

    Args:
        clips: N clips.
        strata: K noise levels of each.
        seed: of their noise.
        spacing: only every n-th check scores them, step 0's first.
    """

    clips: list[LatentSample]
    strata: int
    seed: int
    spacing: int = 1

    @cached_property
    def batches(self) -> list[LatentBatch]:
        """The clips, 32 at a time."""
        return [collate(self.clips[k : k + 32]) for k in range(0, len(self.clips), 32)]

    @cached_property
    def sigmas(self) -> torch.Tensor:
        """(N, K)."""
        return torch.cat([scored_sigmas(batch, self.strata) for batch in self.batches])

    def losses(self, module: VideoDiffusionModule) -> torch.Tensor:
        """(N, K), as `fit` scores them."""
        scored = [paired_losses(module, NOISING, batch, self.seed, self.strata)[LATENTS] for batch in self.batches]
        return torch.cat(scored)


class Source(Protocol):
    """Where the clips and the base of a run come from, what is scored and what is kept of it."""

    def base(self, plan: AnyPlan) -> Path:
        """The base that the run starts from."""

    def training_clips(self, plan: AnyPlan) -> list[LatentSample]:
        """What it trains on; rows count from 0."""

    def recorder(self, plan: AnyPlan) -> Recorder:
        """What scores it."""

    def arrays(self, plan: AnyPlan, recorder: Recorder) -> dict[str, np.ndarray]:
        """What is stored of it; the first axis is checks, step 0 first."""


def scored_sigmas(batch: LatentBatch, num_strata: int) -> torch.Tensor:
    """(clips, strata) noise levels at which a batch is scored."""
    return stratum_sigmas(NOISING, batch.keys, [batch.latents[0, 0].numel()] * len(batch.keys), num_strata)


class _Batches(IterableDataset):
    """Endless shuffled passes over some clips."""

    def __init__(self, clips: list[LatentSample], batch_size: int, seed: int) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.passes = Passes(np.arange(len(clips), dtype=np.uint32), batch_size, seed, 0)

    def __iter__(self) -> Iterator[LatentBatch]:
        first = 0
        while True:
            yield collate([self.clips[row] for row in self.passes.take(first, self.batch_size)])
            first += self.batch_size


class Recorder(Callback):
    """Scores all sets at step 0 and every ``every`` steps, and keeps the numbers.

    Args:
        every: steps between checks.
        sets: what is scored, by name.
        fresh: name of the set that is also scored with new noise and sigmas at each check, as many evaluations.
        seed: of the fresh draws.
    """

    def __init__(self, every: int, sets: dict[str, ScoredSet], fresh: str | None = None, seed: int = 0) -> None:
        self.every = every
        self.sets = sets
        self.fresh = fresh
        self.seed = seed
        self.rows: dict[str, list[torch.Tensor]] = {name: [] for name in sets}
        self.fresh_rows: list[torch.Tensor] = []
        self.train_rows: list[float] = []
        self.losses: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: VideoDiffusionModule) -> None:
        """Measure step 0."""
        self.losses = [math.nan]
        self.check(pl_module, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: VideoDiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Check where one is due."""
        self.losses.append(float(outputs["loss"]))
        if trainer.global_step % self.every == 0:
            self.check(pl_module, trainer.global_step)

    @torch.no_grad()
    def check(self, module: VideoDiffusionModule, step: int) -> None:
        """One row of each table."""
        module.eval()
        for name, scored in self.sets.items():
            if step % (self.every * scored.spacing) == 0:
                self.rows[name].append(scored.losses(module))
        if self.fresh is not None:
            self.fresh_rows.append(self._fresh_losses(module, self.sets[self.fresh], step))
        self.train_rows.append(float(np.mean(self.losses)))
        self.losses = []
        module.train()

    def _fresh_losses(self, module: VideoDiffusionModule, scored: ScoredSet, step: int) -> torch.Tensor:
        generator = keyed_generator("fresh", self.seed, step)
        drawn = []
        for batch in scored.batches:
            for _ in range(scored.strata):
                noise = torch.randn(batch.latents.shape, generator=generator)
                sigmas = NOISING.sample_sigmas(len(noise), generator)
                drawn.append(denoising_loss(module, NOISING, batch, noise, sigmas))
        return torch.cat(drawn)

    def table(self, name: str) -> torch.Tensor:
        """Losses of a set (J, N, K), float64."""
        return torch.stack(self.rows[name]).double()

    def log_ratios(self, name: str) -> torch.Tensor:
        """Log-ratios of a set to step 0 (J, N, K), float64."""
        table = self.table(name)
        return (table / table[0]).log()

    def clip_log_ratios(self, name: str) -> torch.Tensor:
        """What the rule would see of each clip (J, N): the mean over noise levels in the package's weights."""
        table = self.table(name)
        return torch.stack([log_ratio(row, table[0], self.sets[name].sigmas) for row in table])


def train(source: Source, plan: AnyPlan) -> dict[str, np.ndarray]:
    """Trains one run to its end and returns its curves."""
    recorder = source.recorder(plan)
    fit(plan, source.base(plan), source.training_clips(plan), [recorder])
    return source.arrays(plan, recorder)


def fit(plan: AnyPlan, base: Path, clips: list[LatentSample], callbacks: list[Callback]) -> VideoDiffusionModule:
    """Trains as `fit` of the package does, without anything that watches."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    module = VideoDiffusionModule(
        str(base),
        adapter=LoRA(plan.rank, alpha=plan.rank) if plan.rank else None,
        noise=Noise(NOISING, num_strata=4),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=plan.lr, weight_decay=0.01, fused=True),
        warmup_steps=WARMUP_STEPS,
        fps=16,
        seed=plan.seed,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=plan.steps,
        gradient_clip_val=1.0,
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, DataLoader(_Batches(clips, plan.batch_size, plan.seed), batch_size=None))
    return module


def write_trained_base(untrained: Path, base: Path, plan: AnyPlan, clips: list[LatentSample]) -> Path:
    """Trains a base into the folder ``base`` where it is missing; all but the transformer are links."""
    if not (base / "transformer").is_dir():
        module = fit(plan, untrained, clips, [])
        for part in untrained.iterdir():
            if part.name != "transformer" and not (base / part.name).exists():
                (base / part.name).parent.mkdir(parents=True, exist_ok=True)
                (base / part.name).symlink_to(part.resolve())
        module.transformer.save_pretrained(base / "transformer")
    return base


class World:
    """Clips of one size, encoded once and kept in a folder beside the bases.

    Args:
        folder: to keep them in.
        frames: of each clip.
        size: height and width in pixels.
    """

    def __init__(self, folder: Path, frames: int = FRAMES, size: int = SIZE) -> None:
        self.folder = folder
        self.frames = frames
        self.size = size
        self.untrained = folder / "base"
        if not (self.untrained / "model_index.json").is_file():
            write_base(self.untrained, codec_inputs())

    @cached_property
    def _encoders(self) -> BaseEncoders:
        return BaseEncoders(open_family(self.untrained, fps=16))

    def _encode(self, number: int, take: int, negative: bool) -> tuple[torch.Tensor, torch.Tensor]:
        scene = replace(Scene.draw(number), num_frames=self.frames, size=(self.size, self.size))
        frames = torch.from_numpy(scene.render(np.random.default_rng([number, take])))
        frames = 255 - frames if negative else frames
        latents = self._encoders.encode_video(frames[None])["latents"]
        caption = f"{scene.texture} {scene.colours[0]} {scene.shape} {scene.direction}"  # short: most tokens are words
        return latents[0], self._encoders.encode_captions([caption])[0]["prompt_embeds"]

    def clips(self, first: int, videos: int, takes: int, negative: bool = False) -> list[LatentSample]:
        """All takes of consecutive scenes; rows count from 0."""
        path = self.folder / f"clips-{self.frames}x{self.size}-{first}-{videos}-{takes}-{int(negative)}.pt"
        if not path.is_file():
            made = [self._encode(first + v, take, negative) for v in range(videos) for take in range(takes)]
            torch.save([(latents, prompt.half()) for latents, prompt in made], path)
        samples = []
        for row, (latents, prompt) in enumerate(torch.load(path)):
            key = clip_key(f"{first + row // takes}_{row % takes}_{int(negative)}")
            samples.append(LatentSample(latents, prompt.float(), row, key))
        return samples

    def base(self, plan: Plan) -> Path:
        """The untrained base, or one trained on fresh clips, made when first asked for."""
        if plan.kind != "tuned":
            return self.untrained
        long = Plan("fresh", 0, 1e-3, 1000, FRESH_CLIPS // BATCH_SIZE, 10**9)
        return write_trained_base(self.untrained, self.folder / "tuned_base", long, self.training_clips(long))

    def training_clips(self, plan: Plan) -> list[LatentSample]:
        """A few clips over and over, or many that come once."""
        if plan.kind == "fresh":
            clips = self.clips(FRESH, FRESH_CLIPS, 1)
            order = np.random.default_rng(plan.seed).permutation(len(clips))
            return [clips[k]._replace(row=row) for row, k in enumerate(order)]
        videos = VIDEOS[plan.clips]
        return self.clips(TRAIN + 1000 * plan.seed, videos, plan.clips // videos, plan.kind == "tuned")

    def recorder(self, plan: Plan) -> Recorder:
        """Held-out clips, as many training clips, and the oracle's."""
        negative = plan.kind == "tuned"
        val = self.clips(VAL + 1000 * plan.seed, VAL_VIDEOS, VAL_TAKES, negative)
        sets = {
            "val": ScoredSet(val, 4, plan.seed),
            "probe": ScoredSet(_probe(self.training_clips(plan), len(val)), 4, plan.seed),
            "oracle": ScoredSet(self.clips(ORACLE, ORACLE_VIDEOS, 1, negative), ORACLE_STRATA, 0),
        }
        return Recorder(plan.every, sets, fresh="val", seed=plan.seed)

    def arrays(self, plan: Plan, recorder: Recorder) -> dict[str, np.ndarray]:
        """Small arrays: log-ratios to step 0 by check, clip and stratum."""
        oracle, fresh = recorder.table("oracle"), torch.stack(recorder.fresh_rows)
        return {
            "val": recorder.log_ratios("val").half().numpy(),  # (J, N, K)
            "val_start": recorder.rows["val"][0].float().numpy(),  # (N, K)
            "val_sigmas": recorder.sets["val"].sigmas.float().numpy(),
            "probe": recorder.clip_log_ratios("probe").half().numpy(),  # (J, M)
            "oracle": recorder.clip_log_ratios("oracle").unflatten(1, (ORACLE_GROUPS, -1)).mean(2).float().numpy(),
            # (J,), every noise level weighted as in training
            "oracle_plain": (oracle.mean((1, 2)) / oracle[0].mean()).log().float().numpy(),
            "fresh": fresh.mean(1).numpy(),  # (J,)
            "fresh_error": (fresh.std(1) / math.sqrt(fresh.shape[1])).numpy(),
            "train": np.array(recorder.train_rows, np.float32),
            "plan": np.array([plan.steps, plan.every, plan.videos]),
        }


def _probe(train: list[LatentSample], most: int) -> list[LatentSample]:
    """Training clips of all videos, evenly spread."""
    return train[:: -(-len(train) // most)] if len(train) < 1000 else train[:most]
