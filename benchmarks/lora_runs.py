"""Short LoRA runs on a small base of the demo, scored before and after: what ``masks`` and ``preservation`` compare."""

import argparse
import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from lightning.pytorch import Callback

import vidlit
from vidlit.commands.cli.from_python import FitResult

BUCKET = "5x48x48"  # small, so that a base is trained in minutes
Score = TypeVar("Score")
Row = dict[str, object]


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


def fit_lora(folder: Path, base: Path, scored: Callback, steps: int, **options: Any) -> FitResult:
    """Train the LoRA of configs/demo_lora.yaml to its last step."""
    return vidlit.fit(
        "demo_lora",
        quiet=True,
        callbacks=[scored],
        demo=None,
        run__dir=folder / "runs",
        run__report=False,
        data__store=folder / "latents",
        data__buckets=[BUCKET],
        model__base=base,
        samples__num_videos=0,
        samples__num_audit=0,
        overfit_stopping__policy=dict.fromkeys(("divergence", "exposure"), "warn"),
        overfit_stopping__restore="last",
        trainer__max_steps=steps,
        **options,
    )


class BeforeAndAfter(Callback, Generic[Score]):
    """Scores a model before training and after it."""

    def __init__(self) -> None:
        self.scores: list[Score] = []

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Before."""
        self._add(trainer, pl_module)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """After."""
        self._add(trainer, pl_module)

    @torch.no_grad()
    def _add(self, trainer: Any, module: Any) -> None:
        module.eval()
        self.scores.append(self.score(trainer, module))
        module.train()

    @abstractmethod
    def score(self, trainer: Any, module: Any) -> Score:
        """What is compared."""


def table(words: list[str] | None, doc: str | None, steps: int, rows_of: Callable[..., Iterable[Row]]) -> list[Row]:
    """Make a base, and print a table of runs on it as they end; return its rows.

    Args:
        words: of the command line.
        doc: of the benchmark.
        steps: of a run, by default.
        rows_of: makes the rows, from a folder, the base, seeds and steps.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--base-steps", type=int, default=1500)
    options = parser.parse_args(words)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = options.base.resolve() if options.base else train_base(folder, options.base_steps)
        for row in rows_of(folder, base, options.seeds, options.steps):
            if not rows:
                print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            print("| " + " | ".join(str(value) for value in row.values()) + " |", flush=True)
            rows.append(row)
    return rows
