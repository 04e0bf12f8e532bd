"""Real runs to measure stopping on: the tiny default model on procedural clips, scored beside what no user could score.

Every run trains :class:`vidlit.training.module.VideoDiffusionModule` under Lightning to the end of its plan, whatever
its curve does. At each check it scores, with the package's own losses,

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
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

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
    Plan,
)
from vidlit.data.demo_folder import codec_inputs
from vidlit.data.passes import Passes
from vidlit.diffusion.batch import LatentBatch, LatentSample, clip_key, collate
from vidlit.diffusion.loss import denoising_loss, paired_losses
from vidlit.diffusion.noising import Noise, RectifiedFlow, keyed_generator, stratum_sigmas
from vidlit.diffusion.streams import LATENTS
from vidlit.metrics.paired_loss import log_ratio
from vidlit.models.demo_base import write_base
from vidlit.models.encoders import BaseEncoders
from vidlit.models.family import open_family
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.demo_clips import Scene

FRAMES, SIZE = 5, 48  # two latent frames of 3 x 3: a step costs 30 ms on one core
NOISING = RectifiedFlow()
ORACLE_VIDEOS, ORACLE_STRATA, ORACLE_GROUPS = 256, 1, 8
TRAIN, VAL, ORACLE, FRESH = 2_000_000, 3_000_000, 4_000_000, 5_000_000  # numbers of scenes, far from any other use


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
        self.base = folder / "base"
        if not (self.base / "model_index.json").is_file():
            write_base(self.base, codec_inputs())

    @cached_property
    def _encoders(self) -> BaseEncoders:
        return BaseEncoders(open_family(self.base, fps=16))

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

    def tuned_base(self) -> Path:
        """A base trained on fresh clips, made when first asked for."""
        base = self.folder / "tuned_base"
        if not (base / "transformer").is_dir():
            module = _fit(self, Plan("fresh", 0, 1e-3, 1000, FRESH_CLIPS // BATCH_SIZE, 10**9), self.base, [])
            for part in self.base.iterdir():
                if part.name != "transformer":
                    (base / part.name).parent.mkdir(parents=True, exist_ok=True)
                    (base / part.name).symlink_to(part.resolve())
            module.transformer.save_pretrained(base / "transformer")
        return base


def scored_sigmas(batch: LatentBatch, num_strata: int) -> torch.Tensor:
    """(clips, strata) noise levels at which a batch is scored."""
    return stratum_sigmas(NOISING, batch.keys, [batch.latents[0, 0].numel()] * len(batch.keys), num_strata)


class _Batches(IterableDataset):
    """Endless shuffled passes over some clips."""

    def __init__(self, clips: list[LatentSample], seed: int) -> None:
        self.clips = clips
        self.passes = Passes(np.arange(len(clips), dtype=np.uint32), BATCH_SIZE, seed, 0)

    def __iter__(self) -> Iterator[LatentBatch]:
        first = 0
        while True:
            yield collate([self.clips[row] for row in self.passes.take(first, BATCH_SIZE)])
            first += BATCH_SIZE


class Recorder(Callback):
    """Scores all sets at each check and keeps the numbers."""

    def __init__(self, plan: Plan, sets: dict[str, list[LatentSample]]) -> None:
        self.plan = plan
        self.batches = {
            name: [collate(clips[k : k + 32]) for k in range(0, len(clips), 32)] for name, clips in sets.items()
        }
        self.rows: dict[str, list[Any]] = {
            name: [] for name in ("val", "probe", "oracle", "fresh", "fresh_error", "train")
        }
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
        if trainer.global_step % self.plan.every == 0:
            self.check(pl_module, trainer.global_step)

    @torch.no_grad()
    def check(self, module: VideoDiffusionModule, step: int) -> None:
        """One row of each table."""
        module.eval()
        for name in ("val", "probe"):
            self.rows[name].append(torch.cat([module.validation_step(batch, 0) for batch in self.batches[name]]))
        oracle = [paired_losses(module, NOISING, batch, 0, ORACLE_STRATA)[LATENTS] for batch in self.batches["oracle"]]
        self.rows["oracle"].append(torch.cat(oracle))
        generator = keyed_generator("fresh", self.plan.seed, step)
        drawn = []
        for batch in self.batches["val"]:
            for _ in range(module.num_strata):
                noise = torch.randn(batch.latents.shape, generator=generator)
                sigmas = NOISING.sample_sigmas(len(noise), generator)
                drawn.append(denoising_loss(module, NOISING, batch, noise, sigmas))
        fresh = torch.cat(drawn)
        self.rows["fresh"].append(fresh.mean())
        self.rows["fresh_error"].append(fresh.std() / math.sqrt(len(fresh)))
        self.rows["train"].append(torch.tensor(np.mean(self.losses)))
        self.losses = []
        module.train()

    def result(self, module: VideoDiffusionModule) -> dict[str, np.ndarray]:
        """Small arrays: log-ratios to step 0 by check, clip and stratum."""
        tables = {name: torch.stack(rows).double() for name, rows in self.rows.items()}
        sigmas = {
            name: torch.cat([scored_sigmas(batch, tables[name].shape[2]) for batch in self.batches[name]])
            for name in ("val", "probe", "oracle")
        }
        ratios = {
            name: torch.stack([log_ratio(row, tables[name][0], sigmas[name]) for row in tables[name]])
            for name in ("probe", "oracle")
        }
        plain = (tables["oracle"].mean((1, 2)) / tables["oracle"][0].mean()).log()
        return {
            "val": (tables["val"] / tables["val"][0]).log().half().numpy(),  # (J, N, K)
            "val_start": tables["val"][0].float().numpy(),  # (N, K)
            "val_sigmas": sigmas["val"].float().numpy(),
            "probe": ratios["probe"].half().numpy(),  # (J, M)
            "oracle": ratios["oracle"].unflatten(1, (ORACLE_GROUPS, -1)).mean(2).float().numpy(),  # (J, groups)
            "oracle_plain": plain.float().numpy(),  # (J,), every noise level weighted as in training
            **{name: tables[name].float().numpy() for name in ("fresh", "fresh_error", "train")},  # (J,)
        }


def train(world: World, plan: Plan) -> dict[str, np.ndarray]:
    """Trains one run to its end and returns its curves."""
    negative = plan.kind == "tuned"
    val = world.clips(VAL + 1000 * plan.seed, VAL_VIDEOS, VAL_TAKES, negative)
    train = _training_clips(world, plan)
    recorder = Recorder(
        plan,
        {
            "val": val,
            "probe": _probe(train, len(val)),
            "oracle": world.clips(ORACLE, ORACLE_VIDEOS, 1, negative),
        },
    )
    module = _fit(world, plan, world.tuned_base() if negative else world.base, [recorder])
    return recorder.result(module)


def _probe(train: list[LatentSample], most: int) -> list[LatentSample]:
    """Training clips of all videos, evenly spread."""
    return train[:: -(-len(train) // most)] if len(train) < 1000 else train[:most]


def _training_clips(world: World, plan: Plan) -> list[LatentSample]:
    if plan.kind == "fresh":
        clips = world.clips(FRESH, FRESH_CLIPS, 1)
        order = np.random.default_rng(plan.seed).permutation(len(clips))
        return [clips[k]._replace(row=row) for row, k in enumerate(order)]
    videos = VIDEOS[plan.clips]
    return world.clips(TRAIN + 1000 * plan.seed, videos, plan.clips // videos, plan.kind == "tuned")


def _fit(world: World, plan: Plan, base: Path, callbacks: list[Callback]) -> VideoDiffusionModule:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    module = VideoDiffusionModule(
        str(base),
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
    trainer.fit(module, DataLoader(_Batches(_training_clips(world, plan), plan.seed), batch_size=None))
    return module
