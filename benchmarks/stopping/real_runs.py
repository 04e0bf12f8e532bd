"""Which real runs there are, and the file that holds their curves.

The curves in the repository were scored before neighbouring strata mirrored their noise: runs trained anew have the
same weights and slightly less jitter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CURVES = Path(__file__).parent / "results" / "real_curves.npz"
VIDEOS = {8: 4, 32: 8, 128: 16}  # source videos of a training set by its clips
BATCH_SIZE = 4
WARMUP_STEPS = 20
VAL_VIDEOS, VAL_TAKES = 16, 2
FRESH_CLIPS = 1920
# Steps and spacing by number of clips, and how much longer by learning rate: slower rates turn later in small sets.
LENGTHS = {8: (160, 4), 32: (480, 12), 128: (1280, 32)}
RATES = {3e-3: 1.0, 1.5e-3: 1.0, 7e-4: 1.5}


@dataclass(frozen=True)
class Plan:
    """One run.

    Args:
        kind: "clips", "fresh" or "tuned".
        clips: training clips; 0 for ``fresh``.
        lr: learning rate, constant after the warm-up.
        seed: of the choice of clips, their order, noise and sigmas.
        steps: planned, all of them trained.
        every: steps between checks.
    """

    kind: str
    clips: int
    lr: float
    seed: int
    steps: int
    every: int

    @property
    def name(self) -> str:
        """Key of the run in the data file."""
        return f"{self.kind}-{self.clips}-{self.lr:g}-{self.seed}"

    @property
    def videos(self) -> int:
        """Source videos of the training set."""
        return FRESH_CLIPS if self.kind == "fresh" else VIDEOS[self.clips]


def plans() -> list[Plan]:
    """Every run, in the order in which they are trained."""

    def clips(seed: int, *sizes: int) -> list[Plan]:
        longer = {(n, lr): 1.0 if n == 128 else RATES[lr] for n in sizes for lr in RATES}
        return [
            Plan("clips", n, lr, seed, round(LENGTHS[n][0] * by), round(LENGTHS[n][1] * by))
            for (n, lr), by in longer.items()
        ]

    def fresh(seed: int) -> list[Plan]:
        return [Plan("fresh", 0, lr, seed, 480, 16) for lr in RATES]

    tuned = [Plan("tuned", n, lr, 0, 300, 10) for n in (8, 32) for lr in (1e-3, 3e-4, 1e-4)]
    return [
        *clips(0, 8, 32, 128),
        *fresh(0),
        *tuned,
        *clips(1, 8, 32),
        *clips(2, 8, 32),
        *fresh(1),
        *clips(1, 128),
        *clips(2, 128),
    ]


def stored(path: Path = CURVES) -> dict[str, dict[str, np.ndarray]]:
    """Arrays of each run by its name."""
    runs: dict[str, dict[str, np.ndarray]] = {}
    if path.is_file():
        with np.load(path) as file:
            for key in file.files:
                run, name = key.split("/")
                runs.setdefault(run, {})[name] = file[key]
    return runs


def store(runs: dict[str, dict[str, np.ndarray]], path: Path = CURVES) -> None:
    """Writes all runs to one file, at once or not at all."""
    unfinished = path.with_name(f"unfinished_{path.name}")
    np.savez_compressed(
        unfinished, **{f"{run}/{name}": a for run, arrays in runs.items() for name, a in arrays.items()}
    )
    unfinished.replace(path)
