"""Two real gloo processes against one with the same global batch."""

import csv
import os
import subprocess
import sys

import torch
from safetensors.torch import load_file


def fit(words, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "vidlit", *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_two_ranks_train_as_one_with_the_same_global_batch(quickstart, tmp_path):
    options = {"trainer__max_steps": 6, "trainer__val_check_interval": 3}
    fit(quickstart(data__batch_size=4, run__name="one", **options), tmp_path)
    fit(
        quickstart(data__batch_size=2, run__name="two", trainer__devices=2, trainer__strategy="ddp", **options),
        tmp_path,
    )

    one, two = (tmp_path / "runs" / name / "0" for name in ("one", "two"))
    assert not (tmp_path / "runs" / "two" / "1").exists()  # both ranks share a run directory
    assert (one / "exposure.csv").read_text() == (two / "exposure.csv").read_text()
    rows = []
    for run in (one, two):
        with (run / "metrics.csv").open() as file:
            rows.append([row for row in csv.DictReader(file)])
    for column in ("train/loss", "val/loss", "val/log_ratio", "probe/log_ratio"):
        values = [[float(row[column]) for row in table if row[column]] for table in rows]
        torch.testing.assert_close(*map(torch.tensor, values), rtol=2e-5, atol=2e-5)
    # Gradients are averaged in another order, and Adam divides by their root mean square: six steps of 2e-3 move a
    # weight by up to 1e-2, of which rounding may change a hundredth where a gradient is next to nothing.
    weights = [load_file(run / "weights/transformer/diffusion_pytorch_model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-4)
