"""What masks do: the same run with and without them, and the loss where the shape of each clip is.

    python -m benchmarks.masks                   # trains a base first, then four runs
    python -m benchmarks.masks --base runs/demo_base/0/weights
    python -m benchmarks.masks --steps 4 --seeds 0 --base demo/base   # does it run?

Trains a LoRA on clips of one small subject, always the same, in scenes that differ; the base knows such scenes. Both
runs are scored on the same validation clips, of other scenes, at the same noise: inside the mask alone, outside of it
alone, and everywhere. Prints one row a run; steps are counts, which a busy machine does not change.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

import vidlit
from benchmarks.preservation import BUCKET, train_base
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
    for table, columns in (("masked", 3), ("plain", 2)):
        with (folder / f"clips/{table}.csv").open("w", newline="") as file:
            csv.writer(file).writerows(row[:columns] for row in [("file_name", "caption", "mask"), *rows])


class Inside(Callback):
    """Scores the validation clips inside their masks, outside, and everywhere, before training and after it."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.losses: list[dict[str, float]] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Before."""
        self.score(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """After."""
        self.score(trainer, pl_module)

    @torch.no_grad()
    def score(self, trainer: Any, module: Any) -> None:
        """Add the three losses."""
        data = trainer.datamodule
        masked = vidlit.LatentDataModule(
            self.source,
            data.store.root,
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
        module.eval()
        self.losses.append(
            {
                where: float(
                    paired_losses(module, module.noising, batch._replace(weights=weights), 0, 2)[LATENTS].mean()
                )
                for where, weights in (("inside", inside), ("outside", 1 + 1e-6 - inside), ("everywhere", None))
            }
        )
        module.train()


def run(folder: Path, base: Path, table: str, seed: int, steps: int) -> dict[str, object]:
    """Train once; the change of the losses against the base, in per cent."""
    scored = Inside(folder / "clips/masked.csv")
    vidlit.fit(
        "demo_lora",
        quiet=True,
        callbacks=[scored],
        demo=None,
        seed_everything=seed,
        run__dir=folder / "runs",
        run__report=False,
        data__source=folder / f"clips/{table}.csv",
        data__store=folder / "latents",
        data__buckets=[BUCKET],
        data__split__val_fraction=HELD_OUT,
        data__batches__size=4,
        data__unmasked_weight=UNMASKED_WEIGHT,
        model__base=base,
        model__optimizer__init_args__lr=1e-3,
        samples__num_videos=0,
        samples__num_audit=0,
        overfit_stopping__policy=dict.fromkeys(("divergence", "exposure"), "warn"),
        overfit_stopping__restore="last",
        trainer__max_steps=steps,
        trainer__val_check_interval=steps,
    )
    before, after = scored.losses
    change = {where: f"{100 * (after[where] / before[where] - 1):+.1f} %" for where in before}
    return {"clips": table, "seed": seed, "steps": steps, **change, "loss inside": f"{after['inside']:.4f}"}


def main(words: list[str] | None = None) -> list[dict[str, object]]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--base-steps", type=int, default=1500)
    parser.add_argument("--videos", type=int, default=VIDEOS)
    options = parser.parse_args(words)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.base.resolve() if options.base else train_base(folder, options.base_steps)
        write_masked_clips(folder, options.videos)
        for seed in options.seeds:
            for table in ("plain", "masked"):
                rows.append(run(folder, base, table, seed, options.steps))
                if len(rows) == 1:
                    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
                print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    return rows


if __name__ == "__main__":
    main()
