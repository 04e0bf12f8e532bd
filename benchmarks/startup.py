"""CPU seconds (user and system) until a command answers, next to those of ``import torch``.

    python -m benchmarks.startup [--repeats 5]

All in one run, in turns, so that a busy machine slows all of them alike; the median of each. ``fit`` is measured until
its first line, with a demo that is written and encoded already; ``plan`` and ``report`` until their end.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

VIDLIT = (sys.executable, "-m", "vidlit")
SMALL = ("--trainer.max_steps=4", "--trainer.val_check_interval=2", "--samples.num_videos=0", "--samples.num_audit=0")


def cpu_seconds(words: Sequence[str], folder: Path, *, first_line: bool = False) -> float:
    """User and system seconds of a process and of the children it waited for.

    Args:
        words: its command line.
        folder: where it runs.
        first_line: end it when it has printed a line.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    process = subprocess.Popen(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    if first_line:
        if not process.stdout.readline():
            raise RuntimeError(f"{' '.join(words)} printed nothing")
        process.kill()
    process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quickstart = ("--config", "quickstart")
        subprocess.run(
            [*VIDLIT, "fit", *quickstart, *SMALL, "--run.report=false"], cwd=folder, check=True, capture_output=True
        )
        (folder / "misspelt.yaml").write_text("data:\n  sorce: clips\n")
        cases = {
            "python -c 'import torch'": ((sys.executable, "-c", "import torch"), None),
            "vidlit --help": ((*VIDLIT, "--help"), 1.0),
            "vidlit fit --help": ((*VIDLIT, "fit", "--help"), 1.0),
            "an unknown command": ((*VIDLIT, "fitt"), 1.0),
            "a misspelt option": ((*VIDLIT, "fit", *quickstart, "--data.sorce=x"), 1.0),
            "a misspelt key in a file": ((*VIDLIT, "fit", "--config", "misspelt.yaml"), 1.0),
            "a misspelt file": ((*VIDLIT, "fit", "--config", "quickstrt"), 1.0),
            "vidlit report": ((*VIDLIT, "report", "runs/quickstart/0"), 1.0),
            "vidlit plan": ((*VIDLIT, "plan", *quickstart), 2.0),
            "first line of vidlit fit": ((*VIDLIT, "fit", *quickstart), 2.0),
        }
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(repeats):
            for case, (words, _) in cases.items():
                seconds[case].append(cpu_seconds(words, folder, first_line=case.startswith("first line")))
    torch = statistics.median(seconds["python -c 'import torch'"])
    print(f"{'':28}{'CPU s':>8}{'x torch':>9}{'at most':>9}")
    for case, (_, limit) in cases.items():
        median = statistics.median(seconds[case])
        print(f"{case:28}{median:8.2f}{median / torch:9.2f}{'' if limit is None else format(limit, '9.1f')}")


if __name__ == "__main__":
    main()
