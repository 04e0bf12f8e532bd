"""What preservation keeps and what it costs: a LoRA of another style, with and without it, on a base that can do both.

    python -m benchmarks.preservation                       # trains the base first, then six runs
    python -m benchmarks.preservation --base runs/demo_base/0/weights
    python -m benchmarks.preservation --steps 4 --seeds 0 --base demo/base   # does it run?

The base has learned painted clips, and the LoRA learns neon lights. Drift is measured at captions of painted clips
that are neither trained on nor preserved; forgetting itself is the rise of the loss on painted clips that no run has
seen, at noise that is always the same. Prints one row a run; steps are counts, which a busy machine does not change.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback

import vidlit
from vidlit.data.demo_clips import FPS, Scene
from vidlit.data.demo_folder import Demo
from vidlit.data.split import Splitting
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.streams import LATENTS
from vidlit.runs.logged_names import DRIFT, VAL_LOG_RATIO
from vidlit.video.mp4 import write_mp4

BUCKET = "5x48x48"  # small, so that a base is trained in minutes
PAINTED = range(500, 532)  # beyond those that the base was trained on
NUM_NEON = 32
KINDS: dict[str, dict[str, float] | None] = {
    "none": None,
    "half of the steps": {"weight": 1.0, "share": 0.5},
    "every step": {"weight": 1.0, "share": 1.0},
}
CHECKS = 6


def train_base(folder: Path, steps: int) -> Path:
    """The base of configs/demo_base.yaml at one small resolution; the folder of its weights."""
    trained = vidlit.fit(
        "demo_base",
        quiet=True,
        demo__dir=folder / "demo",
        data__source=folder / "demo/clips",
        data__store=folder / "latents",
        data__buckets=[BUCKET],
        data__batches__size=8,
        model__base=folder / "demo/base",
        run__dir=folder / "runs",
        run__report=False,
        samples__num_videos=0,
        samples__num_audit=0,
        trainer__max_steps=steps,
        trainer__val_check_interval=max(1, steps // 6),
    )
    return trained.directory / "weights"


def write_painted(folder: Path) -> list[str]:
    """Painted clips that no run trains on; their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes = {f"{number}.mp4": Scene.draw(number) for number in PAINTED}
    for name, scene in scenes.items():
        write_mp4(folder / name, scene.render(np.random.default_rng([int(name[:-4]), 0])), FPS)
    with (folder / "metadata.csv").open("w", newline="") as file:
        rows = [("file_name", "caption"), *((name, scene.caption) for name, scene in scenes.items())]
        csv.writer(file).writerows(rows)
    return [scene.caption for scene in scenes.values()]


class Painted(Callback):
    """Scores the painted clips before training and after it."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.losses: list[float] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Before."""
        self.score(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """After."""
        self.score(trainer, pl_module)

    @torch.no_grad()
    def score(self, trainer: Any, module: Any) -> None:
        """Add the mean loss."""
        data = vidlit.LatentDataModule(
            self.source,
            trainer.datamodule.store.root,
            module.base,
            [BUCKET],
            fps=FPS,
            split=Splitting(val_fraction=0.0),
        )
        data.encode(accelerator="cpu", devices=1)
        dataset = data.dataset(data.train_clips)
        batch = dataset.read_batch(range(len(dataset)), module.family.prompt_length)
        module.eval()
        self.losses.append(float(paired_losses(module, module.noising, batch, 0, 4)[LATENTS].log().mean()))
        module.train()


def run(folder: Path, base: Path, kind: str, captions: list[str], seed: int, steps: int) -> dict[str, object]:
    """Train one LoRA to its last step."""
    painted, preservation = Painted(folder / "painted"), KINDS[kind]
    result = vidlit.fit(
        "demo_lora",
        quiet=True,
        callbacks=[painted],
        seed_everything=seed,
        demo=None,
        data__source=folder / "neon/clips",
        data__store=folder / "latents",
        data__buckets=[BUCKET],
        model__base=base,
        model__preservation=None if preservation is None else {"captions": captions[4:], **preservation},
        drift__captions=captions[:4],
        run__dir=folder / "runs",
        run__report=False,
        samples__num_videos=0,
        samples__num_audit=0,
        overfit_stopping__policy=dict.fromkeys(("divergence", "exposure"), "warn"),
        overfit_stopping__restore="last",
        trainer__max_steps=steps,
        trainer__val_check_interval=max(1, steps // CHECKS),
    )
    before, after = painted.losses
    drifts, gains = (result.record.curve(row.name).values for row in (DRIFT, VAL_LOG_RATIO))
    curve = ", ".join(DRIFT.text(value) for value in drifts[1:])
    return {
        "preservation": kind,
        "seed": seed,
        "steps": steps,
        "neon validation loss, at best": VAL_LOG_RATIO.text(min(gains)),
        "at the end": VAL_LOG_RATIO.text(gains[-1]),
        "painted loss": VAL_LOG_RATIO.text(after - before),
        "drift at each check": curve,
    }


def main(words: list[str] | None = None) -> list[dict[str, object]]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=90)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--base-steps", type=int, default=1500)
    options = parser.parse_args(words)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.base.resolve() if options.base else train_base(folder, options.base_steps)
        Demo(folder / "neon", num_videos=NUM_NEON, clips_per_video=1, look="neon", base=False).write()
        captions = write_painted(folder / "painted")
        for seed in options.seeds:
            for kind in KINDS:
                rows.append(run(folder, base, kind, captions, seed, options.steps))
                if len(rows) == 1:
                    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
                print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)
    return rows


if __name__ == "__main__":
    main()
