"""Copies and lost diversity on runs that really copy, really collapse, or do neither.

    python -m benchmarks.audits [--source FOLDER] [--seeds 0 1] [--kinds copying collapse honest] [--out FILE.json]

Each run trains the demo's tiny transformer from scratch on procedural clips, or on those of a folder, with all signals
set to warn. What is true is told by samples of other noise, which the signals never see, and by a plain measure of its
own: a run *copies* at an audit where a quarter of the training prompts (two at least) give a sample nearer to its clip
than half the way to the nearest clip of another recording; it has *collapsed* where a quarter of the pairs of samples
of different validation prompts are nearer than half the median distance between their clips. For each run the table
gives the steps at which that first was so and at which each signal first warned and first would have stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

import vidlit
from vidlit.metrics.sample_distance import coarse, distance, nearest_others
from vidlit.sampling.sampler import sample_clips
from vidlit.signals.sample_videos import SampleVideos

OTHER_SEED = 12345
SHARE = 0.25
KINDS: dict[str, dict[str, Any]] = {
    # few clips shown hundreds of times: samples become them
    "copying": {"train": 6, "held_out": 8, "lr": 2e-3, "steps": 500, "every": 100},
    # two clips at a high rate: every prompt is answered alike
    "collapse": {"train": 2, "held_out": 8, "lr": 4e-3, "steps": 400, "every": 80},
    # many clips, each seen a few times
    "honest": {"train": 40, "held_out": 8, "lr": 2e-3, "steps": 200, "every": 50},
}


class Truth(Callback):
    """Samples the audit's prompts with other noise and says what they are."""

    def __init__(self) -> None:
        self.copies: dict[int, float] = {}
        self.collapse: dict[int, float] = {}
        self.said: dict[str, dict[int, Any]] = {"copies": {}, "diversity": {}}
        """Verdicts by step, before the policy made warnings of stops."""

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """After each audit."""
        samples = next(each for each in trainer.callbacks if isinstance(each, SampleVideos))
        audit = samples.audit
        if audit is None or not audit.steps or audit.steps[-1] != trainer.global_step:
            return
        for verdict in (audit.copies(), audit.diversity()):
            self.said[verdict.signal][trainer.global_step] = verdict
        made: dict[int, torch.Tensor] = {}

        def look(chunk: Any) -> None:
            made.update(zip(chunk.rows, coarse(chunk.videos), strict=True))

        family, data = pl_module.family, audit.datamodule
        vae = family.load_vae(pl_module.device)
        sampling = type(audit.sampling)(audit.sampling.num_steps, OTHER_SEED, 1.0, "")
        sample_clips(trainer, pl_module, data, audit.clips, sampling, trainer.global_step, vae, look=look)
        dataset = data.dataset(audit.clips)
        real = [
            coarse(family.decode_latents(vae, dataset[row].latents[None].float()))[0] for row in range(len(audit.clips))
        ]
        others = nearest_others(real, [clip.source.group for clip in audit.clips])
        near = [
            float(distance(made[row][None], real[row][None])) < 0.5 * float(others[row])
            for row, trained in enumerate(audit.trained)
            if trained
        ]
        self.copies[trainer.global_step] = sum(near) / len(near)
        rows = [row for row, trained in enumerate(audit.trained) if not trained]
        pairs = [(i, j) for i, j in combinations(rows, 2) if made[i].shape == made[j].shape]
        scale = statistics.median(float(distance(real[i][None], real[j][None])) for i, j in pairs)
        alike = [float(distance(made[i][None], made[j][None])) < 0.5 * scale for i, j in pairs]
        self.collapse[trainer.global_step] = sum(alike) / len(alike)


def first(found: dict[int, float], least: float = SHARE) -> int | None:
    """Step at which a share was first reached."""
    return next((step for step, share in sorted(found.items()) if step and share >= least), None)


def run(kind: str, seed: int, source: Path | None, folder: Path) -> dict[str, Any]:
    """Train one run and say what was true and what was said."""
    options = KINDS[kind]
    count = options["train"] + options["held_out"]
    truth = Truth()
    overrides: dict[str, Any] = {
        "demo__dir": folder / "demo",
        "demo__num_videos": count,
        "demo__clips_per_video": 1,
        "data__source": folder / "demo" / "clips",
        "data__store": folder / "latents",
        "data__buckets": ["9x48x48"],
        "data__split__val_fraction": options["held_out"] / count,
        "data__batches__size": 8,
        "model__base": folder / "demo" / "base",
        "model__optimizer__lr": options["lr"],
        "run__dir": folder / "runs",
        "run__report": False,
        "seed_everything": seed,
        "trainer__max_steps": options["steps"],
        "trainer__val_check_interval": options["every"],
        "samples__every_num_checks": 1,
        "samples__num_videos": 0,
        "overfit_stopping__policy": {"divergence": "warn", "copies": "warn", "diversity": "warn", "exposure": "off"},
    }
    if source is not None:
        overrides |= {"data__source": _some(source, count, seed, folder), "demo__num_videos": 16}
    result = vidlit.fit("quickstart", callbacks=[truth], quiet=True, **overrides)
    row: dict[str, Any] = {"kind": kind, "seed": seed, "source": source.name if source else "procedural"}
    row["copies"] = {step: round(share, 3) for step, share in truth.copies.items()}
    row["collapse"] = {step: round(share, 3) for step, share in truth.collapse.items()}
    for signal, keys in (("copies", ("copies", "gap", "p_value")), ("diversity", ("log_ratio",))):
        said = {step: verdict for step, verdict in truth.said[signal].items() if step}
        row[f"{signal}_numbers"] = {
            step: [round(float(verdict.evidence[key]), 3) for key in keys if key in verdict.evidence]
            for step, verdict in said.items()
        }
        row[f"{signal}_warned"] = next((step for step, verdict in said.items() if verdict.action != "continue"), None)
        row[f"{signal}_stopped"] = next((step for step, verdict in said.items() if verdict.action == "stop"), None)
    summary = result.summary
    row["best_step"] = summary["best_step"]
    return row


def _some(source: Path, count: int, seed: int, folder: Path) -> Path:
    """A table of some recordings of a folder, one clip of each."""
    import csv
    import random

    with (source / "metadata.csv").open(newline="") as file:
        rows = {row["group"]: row for row in csv.DictReader(file)}
    chosen = random.Random(seed).sample(sorted(rows), min(count, len(rows)))
    table = folder / "some"
    table.mkdir()
    for group in chosen:
        (table / rows[group]["file_name"]).symlink_to(source / rows[group]["file_name"])
    with (table / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file_name", "caption", "group"))
        writer.writerows((rows[group]["file_name"], rows[group]["caption"], group) for group in chosen)
    return table


def main() -> None:
    """Print a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    names = ("copies from", "warned", "stopped", "collapsed from", "warned", "stopped", "best loss")
    print(f"{'run':24}" + "".join(f"{name:>16}" for name in names))
    rows = []
    for kind in options.kinds:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as folder:
                row = run(kind, seed, options.source, Path(folder))
            rows.append(row)
            numbers = [
                first(row["copies"], SHARE),
                row["copies_warned"],
                row["copies_stopped"],
                first(row["collapse"], SHARE),
                row["diversity_warned"],
                row["diversity_stopped"],
                row["best_step"],
            ]
            shown = ["-" if number is None else str(number) for number in numbers]
            print(
                f"{kind + ' ' + str(seed) + ' ' + row['source']:24}" + "".join(f"{text:>16}" for text in shown),
                flush=True,
            )
            if options.out is not None:
                options.out.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
