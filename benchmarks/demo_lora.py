"""The real use in miniature: train a small base, fine-tune its exported folder by LoRA, over several seeds.

    python benchmarks/demo_lora.py                  # the base once, the LoRA with seeds 0, 1, 2
    python benchmarks/demo_lora.py --small          # both cut down to seconds: does it run?

Prints one row a run. Steps and exposures are counts, which a busy machine does not change; seconds it does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vidlit.runs.logged_names import VAL_LOG_RATIO

CONFIGS = Path(__file__).parents[1] / "configs"
_UNSEEN = ("--samples.num_videos=0", "--samples.num_audit=0", "--run.report=false")
SMALL = {
    "demo_base": ["--demo.num_videos=16", "--trainer.max_steps=20", "--trainer.val_check_interval=10", *_UNSEEN],
    "demo_lora": ["--demo.num_videos=16", "--trainer.max_steps=12", "--trainer.val_check_interval=4", *_UNSEEN],
}
"""Options that make both runs short; nothing can be learned from them."""


def fit(folder: Path, config: str, *options: str) -> dict[str, object]:
    """Fit once in a process of its own; returns the summary with the seconds of the whole command."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "vidlit", "fit", "--config", str(CONFIGS / f"{config}.yaml"), *options],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    run = max((folder / "runs" / config).iterdir(), key=lambda path: int(path.name))
    return {**json.loads((run / "summary.json").read_text()), "command_seconds": time.monotonic() - began}


def row(name: str, seed: int, summary: dict) -> dict[str, object]:
    """A line of the table."""
    return {
        "run": name,
        "seed": seed,
        "best step": summary["best_step"],
        "stop step": summary["stop_step"],
        "stopped by": summary["stopped_by"],
        "validation loss at best": VAL_LOG_RATIO.text(-summary["gain"]),
        "exposures at best": f"{summary['exposures_at_best']['mean']:.0f}",
        "exposures at stop": f"{summary['exposures']['mean']:.0f}",
        "seconds": f"{summary['command_seconds']:.0f}",
    }


def main(words: list[str] | None = None) -> list[dict[str, object]]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(words)
    rows: list[dict[str, object]] = []

    def show(name: str, seed: int, *extra: str) -> None:
        summary = fit(folder, name, *extra, *(SMALL[name] if options.small else []))
        rows.append(row(name, seed, summary))
        if len(rows) == 1:
            print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        print("| " + " | ".join(str(value) for value in rows[-1].values()) + " |", flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        show("demo_base", 0)
        for seed in options.seeds:
            show("demo_lora", seed, f"--seed_everything={seed}")
    return rows


if __name__ == "__main__":
    main()
