"""Runs whose audits are known: some are made to copy or to collapse, some do neither.

All train the demo's tiny transformer, from scratch or by LoRA on a base trained on other clips, and every signal only
warns. What is true is told by samples of other noise, which the signals never see, and by plain measures. A run
*copies* at an audit where a quarter of the training prompts (two at least) give a sample nearer to its clip than half
the way to the nearest clip of another recording, and did not at step 0. It has *collapsed* where a quarter of the pairs
of samples of different recordings' prompts are nearer than half the median distance between their clips.
"""

from __future__ import annotations

import csv
import random
import shutil
import statistics
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import torch
from lightning.pytorch import Callback

import vidlit
from vidlit.data.demo_clips import FPS, FRAMINGS, Look, Scene
from vidlit.data.demo_folder import codec_inputs
from vidlit.metrics.sample_distance import coarse, distance, nearest_others
from vidlit.models.demo_base import write_base
from vidlit.sampling.sampler import sample_clips
from vidlit.signals.sample_videos import SampleVideos
from vidlit.stopping.copies import COPY_RATIO
from vidlit.video.mp4 import write_mp4

OTHER_SEED = 12345
"""Of the noise that tells what is true; the audits' own is 0."""
SCENES_OF_A_SEED, BASE_SEED = 10_000, 999
"""Procedural clips of different seeds never meet."""
BASE_CLIPS, BASE_STEPS = 160, 700
WARN = {"divergence": "warn", "copies": "warn", "diversity": "warn", "exposure": "off"}


@dataclass(frozen=True)
class Kind:
    """How runs of one kind are made.

    Args:
        train: number of training recordings.
        held_out: number of validation recordings.
        lr: learning rate.
        batch: clips of a batch.
        steps: optimizer steps.
        every: steps between audits.
        motion: the third of a folder's recordings that moves least (``still``) or most (``moving``), or ``any``;
            procedural still clips are one frame repeated.
        takes: clips of each recording, which share its caption; procedural ones only.
        one_caption: whether all clips have the same caption.
        look: of procedural clips.
        rank: of the LoRA on a trained base; 0 trains all weights from scratch.
    """

    train: int
    held_out: int = 8
    lr: float = 2e-3
    batch: int = 4
    steps: int = 320
    every: int = 64
    motion: Literal["any", "still", "moving"] = "any"
    takes: int = 1
    one_caption: bool = False
    look: Look = "painted"
    rank: int = 0


KINDS = {
    # few clips shown hundreds of times: samples become them
    "copying": Kind(4),
    "copying, still": Kind(4, motion="still"),
    "copying, moving": Kind(4, motion="moving"),
    "copying, takes": Kind(3, takes=3, steps=480, every=96),
    "copying, 2 held out": Kind(4, held_out=2),
    "copying, LoRA": Kind(3, lr=1.5e-2, steps=1000, every=125, rank=32),
    # at a high rate every prompt is answered alike
    "one clip": Kind(1, lr=4e-3, steps=240, every=40),
    "two clips": Kind(2, lr=4e-3, steps=240, every=40),
    "one caption": Kind(3, lr=4e-3, steps=240, every=40, one_caption=True),
    # many clips, each seen a few times, or a short fine-tune
    "honest": Kind(40, batch=8, steps=160, every=32),
    "honest, 2 held out": Kind(40, held_out=2, batch=8, steps=160, every=32),
    "honest, LoRA": Kind(16, lr=4e-3, batch=8, steps=150, every=30, rank=16),
    "honest, style": Kind(24, lr=4e-3, batch=8, steps=150, every=30, rank=16, look="neon"),
}


class Truth(Callback):
    """Samples each audit's prompts with other noise and says what they are."""

    def __init__(self) -> None:
        self.audits: list[dict[str, Any]] = []
        self.prompts: dict[str, Any] = {}

    @torch.no_grad()
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """After each audit."""
        audit = next(each for each in trainer.callbacks if isinstance(each, SampleVideos)).audit
        if audit is None or not audit.steps or audit.steps[-1] != trainer.global_step:
            return
        family, data = pl_module.family, audit.datamodule
        vae = family.load_vae(pl_module.device)
        made: dict[int, torch.Tensor] = {}
        sampling = replace(audit.sampling, seed=OTHER_SEED)
        sample_clips(
            trainer,
            pl_module,
            data,
            audit.clips,
            sampling,
            trainer.global_step,
            vae,
            audit.draws,
            lambda chunk: made.update(zip(chunk.rows, coarse(chunk.videos), strict=True)),
        )
        own = data.dataset(audit.own_clips)
        real = [coarse(family.decode_latents(vae, own[row].latents[None].float()))[0] for row in range(len(own))]
        others = nearest_others(real, [clip.source.group for clip in audit.own_clips])
        near = [
            min(float(distance(made[row][None], real[clip][None]) / others[clip]) for clip in audit.own[row])
            < COPY_RATIO
            for row, trained in enumerate(audit.trained)
            if trained
        ]
        groups = [clip.source.group for clip in audit.clips]
        pairs = [
            (i, j)
            for i, j in combinations(audit.telling, 2)
            if groups[i] != groups[j] and made[i].shape == made[j].shape
        ]
        clips = [row[0] for row in audit.own]
        scale = statistics.median(float(distance(real[clips[i]][None], real[clips[j]][None])) for i, j in pairs)
        alike = [float(distance(made[i][None], made[j][None])) < 0.5 * scale for i, j in pairs]
        names = sorted(set(groups))
        self.prompts = {
            "trained": [int(trained) for trained in audit.trained],
            "groups": [names.index(group) for group in groups],
            "few_held_out": any(audit.trained[row] for row in audit.telling),
        }
        self.audits.append(
            {
                "step": trainer.global_step,
                "near": [int(each) for each in near],
                "alike": round(sum(alike) / len(alike), 3),
                "distances": [round(float(value), 4) for value in audit.distances[-1]],
                "ratios": [round(float(value), 3) for value in audit.ratios[-1]],
                "variety": round(audit.varieties[-1], 3),
            }
        )


def run(name: str, seed: int, source: Path | None, folder: Path) -> dict[str, Any]:
    """Train one run.

    Args:
        name: of its kind.
        seed: of clips, split and weights.
        source: folder of real clips with a ``metadata.csv``; ``None`` for procedural ones.
        folder: for bases, clips and runs; bases that lie there are used.

    Returns:
        What the signals saw and what was true, as plain numbers for JSON.
    """
    kind, truth = KINDS[name], Truth()
    base = trained_base(folder) if kind.rank else untrained_base(folder)
    where = folder / f"{name} {seed} {'real' if source else 'procedural'}".replace(", ", "-").replace(" ", "-")
    clips = write_procedural(kind, seed, where / "clips") if source is None else copy_real(kind, seed, source, where)
    overrides = options(kind, clips, base, where)
    result = vidlit.fit("quickstart", callbacks=[truth], quiet=True, seed_everything=seed, **overrides)
    return {
        "kind": name,
        "seed": seed,
        "clips": "real" if source else "procedural",
        "best_step": result.summary["best_step"],
        **truth.prompts,
        "audits": truth.audits,
    }


def options(kind: Kind, clips: Path, base: Path, folder: Path) -> dict[str, Any]:
    """What a run of a kind overrides of the quickstart; its store and its run lie in a folder."""
    return {
        "demo": None,
        "data__source": clips,
        "data__store": folder / "latents",
        "data__encoding__num_workers": 1,
        "data__buckets": ["9x48x48"],
        "data__batches__size": kind.batch,
        "data__cutting__mode": "head",
        "data__split__val_fraction": kind.held_out / (kind.train + kind.held_out),
        "model__base": base,
        "model__optimizer__init_args__lr": kind.lr,
        "run__dir": folder / "runs",
        "run__report": False,
        "trainer__max_steps": kind.steps,
        "trainer__val_check_interval": kind.every,
        "samples__every_num_checks": 1,
        "samples__num_videos": 0,
        "overfit_stopping__policy": WARN,
        "model__adapter": {"rank": kind.rank, "alpha": kind.rank} if kind.rank else None,
    }


def untrained_base(folder: Path) -> Path:
    """The demo's base, written where it is missing."""
    base = folder / "base"
    if not (base / "model_index.json").is_file():
        write_base(base, codec_inputs())
    return base


def trained_base(folder: Path) -> Path:
    """The same trained on procedural clips of their own, where it is missing."""
    where = folder / "trained_base"
    if not (where / "base").exists():
        kind = Kind(BASE_CLIPS, held_out=16, batch=16, steps=BASE_STEPS, every=BASE_STEPS // 2)
        clips = write_procedural(kind, BASE_SEED, where / "clips")
        overrides = options(kind, clips, untrained_base(folder), where)
        overrides |= {"samples__num_audit": 0, "export__base_parts": "copy"}
        result = vidlit.fit("quickstart", quiet=True, seed_everything=BASE_SEED, **overrides)
        shutil.move(result.directory / "weights", where / "base")
    return where / "base"


def write_procedural(kind: Kind, seed: int, folder: Path) -> Path:
    """Write a kind's clips and their table; returns the folder."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(SCENES_OF_A_SEED * (seed + 1), SCENES_OF_A_SEED * (seed + 1) + kind.train + kind.held_out):
        scene = replace(Scene.draw(number, kind.look), num_frames=FRAMINGS[0][0])
        for take in range(kind.takes):
            frames = scene.render(np.random.default_rng([number, take]))
            if kind.motion == "still":
                frames = np.repeat(frames[:1], len(frames), axis=0)
            name = f"scene_{number}_take_{take}.mp4"
            write_mp4(folder / name, frames, FPS)
            rows.append((name, scene.caption, f"scene_{number}"))
    return _write_table(kind, rows, folder)


def copy_real(kind: Kind, seed: int, source: Path, folder: Path) -> Path:
    """Copy one clip of each of some recordings of a folder; returns the folder of the copies."""
    with (source / "metadata.csv").open(newline="") as file:
        found = {row["group"]: row for row in reversed(list(csv.DictReader(file)))}
    groups = sorted(found)
    if kind.motion != "any":
        groups.sort(key=lambda group: mean_motion(source / found[group]["file_name"]))
        third = len(groups) // 3
        groups = groups[:third] if kind.motion == "still" else groups[-third:]
    rows = [found[group] for group in random.Random(seed).sample(groups, kind.train + kind.held_out)]
    clips = folder / "clips"
    clips.mkdir(parents=True)
    for row in rows:
        shutil.copy(source / row["file_name"], clips)
    return _write_table(kind, [(row["file_name"], row["caption"], row["group"]) for row in rows], clips)


def _write_table(kind: Kind, rows: list[tuple[str, str, str]], folder: Path) -> Path:
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption", "group"))
        writer.writerows((name, "A video." if kind.one_caption else caption, group) for name, caption, group in rows)
    return folder


def mean_motion(path: Path) -> float:
    """Mean absolute difference of successive frames, in grey levels from 0 to 255 at 48 x 48 pixels."""
    with av.open(str(path)) as video:
        frames = np.stack([frame.reformat(48, 48, "gray").to_ndarray() for frame in video.decode(video=0)])
    return float(np.abs(np.diff(frames.astype(np.float32), axis=0)).mean())
