"""A run killed at random moments loses nothing but the steps since its last check."""

import csv
import os
import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main


@pytest.mark.slow
def test_killed_again_and_again_ends_as_the_uninterrupted_run(quickstart, tmp_path):
    options = {"trainer__max_steps": 60, "trainer__val_check_interval": 10}
    assert main(quickstart(run__name="whole", **options)) == 0
    words = quickstart(run__name="killed", **options)
    last = tmp_path / "runs" / "killed" / "0" / "checkpoints" / "last.ckpt"
    dice = random.Random(0)
    kills = 0
    for _ in range(12):
        resume = ["--ckpt_path=last"] if last.exists() else []
        if not resume and last.parent.parent.exists():  # killed before the first check: a new start, same folder
            words = quickstart(run__name=f"killed{kills}", **options)
            last = tmp_path / "runs" / f"killed{kills}" / "0" / "checkpoints" / "last.ckpt"
        process = subprocess.Popen(
            [sys.executable, "-m", "vidlit", *words, *resume],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=dice.uniform(6, 16))
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    else:
        assert main([*words, "--ckpt_path=last"]) == 0
    assert kills > 0
    whole, killed = tmp_path / "runs" / "whole" / "0", last.parent.parent
    for file in ("exposure.csv", "decisions.jsonl"):
        assert (killed / file).read_text() == (whole / file).read_text()
    losses = []
    for run in (whole, killed):
        with (run / "metrics.csv").open() as table:
            losses.append([(row["step"], row["train/loss"]) for row in csv.DictReader(table) if row["train/loss"]])
    assert [(int(float(step)), loss) for step, loss in losses[1]] == [(int(float(s)), loss) for s, loss in losses[0]]
    weights = [load_file(run / "weights/transformer/diffusion_pytorch_model.safetensors") for run in (whole, killed)]
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
