"""What preservation keeps and what it costs: a LoRA of another style, with and without it, on a base that can do both.

    python -m benchmarks.preservation                       # trains the base first, then six runs
    python -m benchmarks.preservation --base runs/demo_base/0/weights
    python -m benchmarks.preservation --steps 4 --seeds 0 --base demo/base   # does it run?

The base has learned painted clips, and the LoRA learns neon lights. Drift is measured at captions of painted clips
that are neither trained on nor preserved; forgetting itself is the rise of the loss on painted clips that no run has
seen, at noise that is always the same. Prints one row a run; steps are counts, which a busy machine does not change.
"""

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import vidlit
from benchmarks.lora_runs import BUCKET, BeforeAndAfter, Row, fit_lora, table
from vidlit.data.demo_clips import FPS, Scene
from vidlit.data.demo_folder import Demo
from vidlit.data.split import Splitting
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.streams import LATENTS
from vidlit.runs.logged_names import DRIFT, VAL_LOG_RATIO
from vidlit.video.mp4 import write_mp4

PAINTED = range(500, 532)  # beyond those that the base was trained on
NUM_NEON = 32
KINDS: dict[str, dict[str, float] | None] = {
    "none": None,
    "half of the steps": {"weight": 1.0, "share": 0.5},
    "every step": {"weight": 1.0, "share": 1.0},
}
CHECKS = 6


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


class Painted(BeforeAndAfter[float]):
    """Scores the painted clips."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self.source = source

    def score(self, trainer: Any, module: Any) -> float:
        """The mean of the losses' logarithms."""
        data = vidlit.LatentDataModule(
            self.source,
            trainer.datamodule.store.storage.root,
            module.base,
            [BUCKET],
            fps=FPS,
            split=Splitting(val_fraction=0.0),
        )
        data.encode(accelerator="cpu", devices=1)
        dataset = data.dataset(data.train_clips)
        batch = dataset.read_batch(range(len(dataset)), module.family.prompt_length)
        return float(paired_losses(module, module.noising, batch, 0, 4)[LATENTS].log().mean())


def run(folder: Path, base: Path, kind: str, captions: list[str], seed: int, steps: int) -> Row:
    """Train one LoRA to its last step."""
    painted, preservation = Painted(folder / "painted"), KINDS[kind]
    result = fit_lora(
        folder,
        base,
        painted,
        steps,
        seed_everything=seed,
        data__source=folder / "neon/clips",
        model__preservation=None if preservation is None else {"captions": captions[4:], **preservation},
        drift__captions=captions[:4],
        trainer__val_check_interval=max(1, steps // CHECKS),
    )
    before, after = painted.scores
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


def rows_of(folder: Path, base: Path, seeds: Iterable[int], steps: int) -> Iterator[Row]:
    """All kinds of run for each seed."""
    Demo(folder / "neon", num_videos=NUM_NEON, clips_per_video=1, look="neon", base=False).write()
    captions = write_painted(folder / "painted")
    for seed in seeds:
        for kind in KINDS:
            yield run(folder, base, kind, captions, seed, steps)


def main(words: list[str] | None = None) -> list[Row]:
    """Print the table; return its rows."""
    return table(words, __doc__, 90, rows_of)


if __name__ == "__main__":
    main()
