"""What masks do: the same run with and without them, and the loss where the shape of each clip is.

    python -m benchmarks.masks                   # trains a base first, then four runs
    python -m benchmarks.masks --base runs/demo_base/0/weights
    python -m benchmarks.masks --steps 4 --seeds 0 --base demo/base   # does it run?

Trains a LoRA on clips of one small subject, always the same, in scenes that differ; the base knows such scenes. Both
runs are scored on the same validation clips, of other scenes, at the same noise: inside the mask alone, outside of it
alone, and everywhere. Prints one row a run; steps are counts, which a busy machine does not change.
"""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import vidlit
from benchmarks.lora_runs import BUCKET, BeforeAndAfter, Row, fit_lora, table
from vidlit.data.demo_clips import FPS, Scene
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.streams import LATENTS
from vidlit.video.mp4 import write_mp4

VIDEOS, HELD_OUT = 48, 0.34
UNMASKED_WEIGHT = 0.1  # the default
SUBJECT: dict[str, Any] = {"shape": "cross", "texture": "checkered", "radius": 0.18}


def write_masked_clips(folder: Path, num_videos: int) -> None:
    """Clips with their masks, which ``masked.csv`` names and ``plain.csv`` does not."""
    (folder / "clips").mkdir(parents=True)
    rows = []
    for number in range(num_videos):
        drawn, name = Scene.draw(1000 + 2 * number), f"scene_{number:03d}"  # even ones are square
        scene = replace(drawn, **SUBJECT, colours=("pink", "green", *drawn.colours[2:]))
        for suffix, render in (("", scene.render), ("_mask", scene.render_mask)):
            write_mp4(folder / f"clips/{name}{suffix}.mp4", render(np.random.default_rng([number, 0])), FPS)
        rows.append((f"{name}.mp4", scene.caption, f"{name}_mask.mp4"))
    for kind, columns in (("masked", 3), ("plain", 2)):
        with (folder / f"clips/{kind}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(row[:columns] for row in [("file_name", "caption", "mask"), *rows])


class Inside(BeforeAndAfter[dict[str, float]]):
    """Scores the validation clips inside their masks, outside, and everywhere."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.source = source

    def score(self, trainer: Any, module: Any) -> dict[str, float]:
        """The three losses."""
        data = trainer.datamodule
        masked = vidlit.LatentDataModule(
            self.source,
            data.store.storage.root,
            module.base,
            [BUCKET],
            fps=FPS,
            cutting=data.cutting,
            split=data.splitting,
            unmasked_weight=1e-6,
        )
        masked.encode(accelerator="cpu", devices=1)
        dataset = masked.dataset(masked.val_clips)
        batch = dataset.read_batch(range(len(dataset)), module.family.prompt_length)
        inside = batch.weights
        return {
            where: float(paired_losses(module, module.noising, batch._replace(weights=weights), 0, 2)[LATENTS].mean())
            for where, weights in (("inside", inside), ("outside", 1 + 1e-6 - inside), ("everywhere", None))
        }


def run(folder: Path, base: Path, kind: str, seed: int, steps: int) -> Row:
    """Train once; the change of the losses against the base, in per cent."""
    scored = Inside(folder / "clips/masked.csv")
    fit_lora(
        folder,
        base,
        scored,
        steps,
        seed_everything=seed,
        data__source=folder / f"clips/{kind}.csv",
        data__split__val_fraction=HELD_OUT,
        data__batches__size=4,
        data__unmasked_weight=UNMASKED_WEIGHT,
        model__optimizer__init_args__lr=1e-3,
        trainer__val_check_interval=steps,
    )
    before, after = scored.scores
    change = {where: f"{100 * (after[where] / before[where] - 1):+.1f} %" for where in before}
    return {"clips": kind, "seed": seed, "steps": steps, **change, "loss inside": f"{after['inside']:.4f}"}


def rows_of(folder: Path, base: Path, seeds: Iterable[int], steps: int) -> Iterator[Row]:
    """Both kinds of run for each seed."""
    write_masked_clips(folder, VIDEOS)
    for seed in seeds:
        for kind in ("plain", "masked"):
            yield run(folder, base, kind, seed, steps)


def main(words: list[str] | None = None) -> list[Row]:
    """Print the table; return its rows."""
    return table(words, __doc__, 80, rows_of)


if __name__ == "__main__":
    main()
