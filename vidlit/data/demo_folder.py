"""The embedded default: procedural clips and a tiny base model, so that everything can be tried with nothing at hand.

A demo folder holds ``clips/`` (h264 mp4 files and their ``metadata.csv``) and ``base/`` (a complete diffusers folder:
an untrained LTX-Video transformer of 1.25 M parameters, the weight-free codec, a tiny T5 and the byte-level tokenizer).
Every video is a function of its number, so a larger demo contains the smaller one.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vidlit.data.demo_clips import FPS, Look, Scene
from vidlit.latents.quiet_lightning import quiet_lightning
from vidlit.video.mp4 import write_mp4
from vidlit.whole_files import replacing

if TYPE_CHECKING:
    from torch import Tensor

STATISTICS_VIDEOS = range(1_000_000, 1_000_064)
"""Numbers of the videos that only the codec's normalisation sees, far from any demo's."""


@dataclass(frozen=True)
class Demo:
    """Generated clips and a tiny base model, written where they are missing.

    Args:
        dir: folder to write ``clips/`` and ``base/`` to.
        num_videos: number of recordings; each has its own shape, texture, colours, motion, size or duration.
        clips_per_video: number of clips of each recording; they share its scene.
        look: style of all videos: ``painted``, or ``neon`` to fine-tune a model of the painted ones on.
        base: whether to write the base model, too.
    """

    dir: Path = Path("demo")
    num_videos: int = 24
    clips_per_video: int = 3
    look: Look = "painted"
    base: bool = True

    def write(self) -> None:
        """Write what the folder lacks; ``metadata.csv`` always lists just the videos asked for."""
        self.write_clips()
        if self.base and not (self.dir / "base" / "model_index.json").is_file():
            from vidlit.models.demo_base import write_base

            with quiet_lightning():  # diffusers loads torchao
                write_base(self.dir / "base", codec_inputs())

    def write_clips(self) -> None:
        """Write the clips as mp4 and list them, with captions and groups, in ``metadata.csv``."""
        folder = self.dir / "clips"
        rows = []
        for number in range(self.num_videos):
            scene = Scene.draw(number, self.look)
            for take in range(self.clips_per_video):
                name = f"scene_{number:03d}_take_{take}.mp4"
                if not (folder / name).is_file():
                    folder.mkdir(parents=True, exist_ok=True)
                    write_mp4(folder / name, scene.render(np.random.default_rng([number, take])), FPS)
                rows.append((name, scene.caption, f"scene_{number:03d}"))
        with replacing(folder / "metadata.csv") as unfinished, unfinished.open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "caption", "group"), *rows])


def codec_inputs() -> Iterator[Tensor]:
    """First 9 frames of the videos of the codec's statistics, cropped to whole patches: (1, 3, 9, H, W) in [-1, 1]."""
    import torch

    for number in STATISTICS_VIDEOS:
        frames = Scene.draw(number).render(np.random.default_rng([number, 0]))[:9]
        height, width = (side // 16 * 16 for side in frames.shape[1:3])
        video = torch.from_numpy(frames[:, :height, :width]).permute(3, 0, 1, 2)[None]
        yield video.float() / 127.5 - 1
