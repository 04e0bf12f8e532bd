"""Which real runs there are, and the files that hold their curves.

Two sets, on procedural clips (`plans`) and on real clips from a folder (`folder_plans`).

The procedural curves in the repository were scored before neighbouring strata mirrored their noise: runs trained anew
have the same weights and slightly less jitter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

CURVES = Path(__file__).parent / "results" / "real_curves.npz"
FOLDER_CURVES = CURVES.with_name("real_clip_curves.npz")
VIDEOS = {8: 4, 32: 8, 128: 16}  # source videos of a training set by its clips
BATCH_SIZE = 4
WARMUP_STEPS = 20
VAL_VIDEOS, VAL_TAKES = 16, 2
FRESH_CLIPS = 1920
CHECKS = 240  # of a run on real clips, after step 0
LORA_RANK = 16
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
    batch_size = BATCH_SIZE
    rank = 0

    @property
    def name(self) -> str:
        """Key of the run in the data file."""
        return f"{self.kind}-{self.clips}-{self.lr:g}-{self.seed}"

    @property
    def videos(self) -> int:
        """Source videos of the training set."""
        return FRESH_CLIPS if self.kind == "fresh" else VIDEOS[self.clips]


@dataclass(frozen=True)
class FolderPlan:
    """One run on real clips from a folder.

    Args:
        kind: "scratch" from the untrained base, "lora" on a base trained on other recordings of the folder, "plenty"
            from scratch on all that is not held out, still improving at its end.
        recordings: in the training set.
        takes: excerpts of each of them.
        motion: "all" recordings, the "still" half of them, or the "moving" one.
        batch_size: samples of a step.
        lr: learning rate, constant after the warm-up.
        seed: of the choice of recordings, their order, noise and sigmas.
        every: steps between checks; there are 240 checks after step 0, evenly spaced.
    """

    kind: str
    recordings: int
    takes: int
    motion: str
    batch_size: int
    lr: float
    seed: int
    every: int

    @property
    def name(self) -> str:
        """Key of the run in the data file."""
        return (
            f"{self.kind}-{self.recordings}x{self.takes}-{self.motion}-batch{self.batch_size}-{self.lr:g}-{self.seed}"
        )

    @property
    def steps(self) -> int:
        """Planned, all of them trained."""
        return CHECKS * self.every

    @property
    def rank(self) -> int:
        """Of the LoRA; 0 where the weights themselves are trained."""
        return LORA_RANK if self.kind == "lora" else 0

    @property
    def val_recordings(self) -> int:
        """Held out, one clip of each."""
        return 8 if self.motion != "all" else 16 if self.recordings >= 24 else 12

    @property
    def four_levels(self) -> bool:
        """Whether validation clips are also scored at four noise levels: in a few runs, as it doubles their checks."""
        return self.seed in (0, 2) and (self.recordings, self.takes) == (12, 3)


AnyPlan = Plan | FolderPlan


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


def folder_plans() -> list[FolderPlan]:
    """Every run on real clips, in the order in which they are trained."""
    repeated = (
        ("scratch", 6, 1, "still", 1, 1e-3, 2),
        ("scratch", 12, 3, "all", 4, 2e-3, 1),
        ("lora", 12, 3, "all", 4, 3e-3, 1),
        ("lora", 6, 4, "moving", 4, 1e-3, 1),
        ("scratch", 6, 4, "moving", 4, 1e-3, 1),
        ("lora", 12, 1, "all", 8, 1e-3, 1),
        ("scratch", 12, 1, "all", 8, 3e-3, 1),
        ("lora", 6, 1, "all", 1, 3e-4, 3),
        ("plenty", 45, 8, "all", 4, 3e-4, 2),
        ("scratch", 12, 1, "still", 1, 5e-4, 4),
        ("lora", 18, 8, "all", 4, 3e-4, 2),
        ("scratch", 24, 1, "all", 1, 1e-3, 6),
    )
    first = (
        ("scratch", 24, 3, "all", 4, 1e-3, 2),
        ("scratch", 24, 1, "all", 4, 3e-3, 2),
        ("scratch", 45, 1, "all", 4, 3e-3, 3),
        ("lora", 6, 1, "all", 1, 1e-3, 4),
        ("lora", 18, 4, "all", 1, 5e-4, 4),
    )
    later = (  # those that the first seed did not train far enough past their minimum
        ("lora", 18, 4, "all", 1, 1.5e-3, 4),
        ("scratch", 24, 1, "all", 4, 3e-3, 4),
        ("scratch", 45, 1, "all", 4, 3e-3, 5),
    )
    made = [(one, seed) for seed in range(3) for one in (*repeated, *(first if seed == 0 else ()))]
    made += [(one, seed) for seed in (1, 2) for one in later]
    return [FolderPlan(*one[:6], seed, one[6]) for one, seed in made]


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
