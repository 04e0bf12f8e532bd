"""CPU seconds (user and system) of `vidlit plan` with its forecast of memory, for each shipped configuration.

    python -m benchmarks.plan_seconds                                     # about 10 minutes
    python -m benchmarks.plan_seconds --configs ltx_video_lora --cards 24GB --figures figures.json

A process for each plan, from its start to its end, on four still clips. A small card is the harder one: what takes less
is looked for. The bases' configs are those of `benchmarks/published_configs/`; no weights. Aim: at most 30 CPU seconds.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import yaml

from benchmarks.memory import ROOT
from benchmarks.published import published_bases, write_published
from benchmarks.startup import VIDLIT
from vidlit.commands.starting.shipped_configs import shipped_configs
from vidlit.video.buckets import Bucket
from vidlit.video.mp4 import write_mp4

CARDS = ("24GB", "80GB")
CLIPS = 4


def write_clips(folder: Path, config: dict) -> None:
    """Write clips that are as long and large as the largest bucket of a configuration."""
    largest = max(map(Bucket.parse, config["data"]["buckets"]))
    folder.mkdir(parents=True)
    for number in range(CLIPS):
        frames = np.full((largest.num_frames + 1, largest.height, largest.width, 3), 25 * number, np.uint8)
        write_mp4(folder / f"{number}.mp4", frames, config["data"]["fps"])
        (folder / f"{number}.txt").write_text(f"still number {number}")


def plan(config: Path, base: Path, clips: Path, card: str) -> tuple[float, dict]:
    """CPU seconds of a plan, and what it said."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["plan", "--config", str(config), "--json", "--gpu-memory", card]
    places = [f"--model.base={base}", f"--data.source={clips}"]
    said = subprocess.run([*VIDLIT, *words, *places], check=True, stdout=subprocess.PIPE, text=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(said)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {config.name: config for config in shipped_configs().values() if config.base in published_bases()}
    parser.add_argument("--configs", nargs="+", default=sorted(known), help="names of shipped configurations (all)")
    parser.add_argument("--cards", nargs="+", default=CARDS, help="to judge by")
    parser.add_argument("--figures", type=Path, help="write what was forecast, to compare it with another version's")
    options = parser.parse_args()
    figures = {}
    print(f"| config | {' | '.join(options.cards)} |\n|---|{'---|' * len(options.cards)}")
    for name in options.configs:
        with tempfile.TemporaryDirectory() as folder:
            path = ROOT / "configs" / f"{name}.yaml"
            config = yaml.safe_load(path.read_text())
            base = write_published(config["model"]["base"], Path(folder) / "base")
            write_clips(clips := Path(folder) / "clips", config)
            made = {card: plan(path, base, clips, card) for card in options.cards}
        figures[name] = {card: {part: said[part] for part in ("memory", "time")} for card, (_, said) in made.items()}
        print(f"| {name} | {' | '.join(f'{seconds:.1f}' for seconds, _ in made.values())} |", flush=True)
        if options.figures is not None:
            options.figures.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    sys.exit(main())
