"""A run killed at random moments loses nothing but the steps since its last check."""

import csv
import os
import random
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main


@pytest.mark.slow
def test_killed_again_and_again_ends_as_the_uninterrupted_run(quickstart, tmp_path):
    options = {
        "trainer__max_steps": 200,
        "trainer__val_check_interval": 10,
        "overfit_stopping__policy__divergence": "off",
        "overfit_stopping__restore": "conservative",
    }
    assert main(quickstart(run__name="whole", **options)) == 0
    words = quickstart(run__name="killed", **options)
    last = tmp_path / "runs" / "killed" / "0" / "checkpoints" / "last.ckpt"
    dice = random.Random(0)
    for _ in range(4):
        before = last.stat().st_mtime_ns if last.exists() else 0
        process = subprocess.Popen(
            [sys.executable, "-m", "vidlit", *words, *(["--ckpt_path=last"] if before else [])],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and (last.stat().st_mtime_ns if last.exists() else 0) == before:
            time.sleep(0.02)
        time.sleep(dice.uniform(0, 2))
        assert process.poll() is None, "the run ended before it could be killed: give it more steps"
        process.kill()
        process.wait()
    assert main([*words, "--ckpt_path=last"]) == 0
    whole, killed = tmp_path / "runs" / "whole" / "0", last.parent.parent
    for file in ("exposure.csv", "decisions.jsonl"):
        assert (killed / file).read_text() == (whole / file).read_text()
    # The weights that may come to be kept are there, and no others.
    assert sorted(path.name for path in (killed / "checkpoints").iterdir()) == sorted(
        path.name for path in (whole / "checkpoints").iterdir()
    )
    losses = []
    for run in (whole, killed):
        with (run / "metrics.csv").open() as table:
            losses.append([(row["step"], row["train/loss"]) for row in csv.DictReader(table) if row["train/loss"]])
    assert [(int(float(step)), loss) for step, loss in losses[1]] == [(int(float(s)), loss) for s, loss in losses[0]]
    weights = [load_file(run / "weights/transformer/diffusion_pytorch_model.safetensors") for run in (whole, killed)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
