"""Two real gloo processes against one with the same global batch."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.conftest import CONFIGS
from tests.runs.test_launch import children_of
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting

CAPPED = {"trainer__max_steps": 12, "trainer__val_check_interval": 3, "exposure__hard_cap": 7}
"""Six steps: the cap of exposures stops the run at the second check."""


def start(words, folder):
    return subprocess.Popen(
        [sys.executable, "-m", "vidlit", *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


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


def assert_decided_alike(one, two):
    """The same verdicts at the same checks, for the same reasons but for what rounding changes."""
    decisions = [
        [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()] for run in (one, two)
    ]
    kept = [
        [
            (each["step"], each["action"], each["signals"], [verdict["action"] for verdict in each["verdicts"]])
            for each in run
        ]
        for run in decisions
    ]
    assert kept[0] == kept[1]
    assert kept[0][-1][:3] == (6, "stop", ["exposure"])
    summaries = [json.loads((run / "summary.json").read_text()) for run in (one, two)]
    for name in ("stopped_by", "stop_step", "best_step", "kept_step"):
        assert summaries[0][name] == summaries[1][name]
    assert summaries[0]["stopped_by"] == "exposure"


@pytest.mark.slow
def test_two_ranks_train_as_one_with_the_same_global_batch(quickstart, tmp_path):
    fit(quickstart(data__batches__size=4, run__name="one", **CAPPED), tmp_path)
    fit(
        quickstart(data__batches__size=2, run__name="two", trainer__devices=2, trainer__strategy="ddp", **CAPPED),
        tmp_path,
    )

    one, two = (tmp_path / "runs" / name / "0" for name in ("one", "two"))
    assert not (tmp_path / "runs" / "two" / "1").exists()  # both ranks share a run directory
    assert_decided_alike(one, two)
    assert (one / "exposure.csv").read_text() == (two / "exposure.csv").read_text()
    rows = []
    for run in (one, two):
        with (run / "metrics.csv").open() as file:
            rows.append([row for row in csv.DictReader(file)])
    for column in ("train/loss", "val/loss", "val/log_ratio", "train_eval/log_ratio"):
        values = [[float(row[column]) for row in table if row[column]] for table in rows]
        torch.testing.assert_close(*map(torch.tensor, values), rtol=2e-5, atol=2e-5)
    # Gradients are averaged in another order, and Adam divides by their root mean square: six steps of 2e-3 move a
    # weight by up to 1e-2, of which rounding may change a hundredth where a gradient is next to nothing.
    weights = [load_file(run / "weights/transformer/diffusion_pytorch_model.safetensors") for run in (one, two)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_ledger_of_ranks_accumulation_and_a_resume_is_what_the_plan_says(quickstart, demo, latents, tmp_path):
    options = {"trainer__devices": 2, "trainer__strategy": "ddp", "trainer__accumulate_grad_batches": 2}
    options |= {
        "data__batches__size": 1,
        "trainer__val_check_interval": 4,
        "overfit_stopping__policy__divergence": "off",
    }
    fit(quickstart(trainer__max_steps=4, **options), tmp_path)
    fit([*quickstart(trainer__max_steps=9, **options), "--ckpt_path=last"], tmp_path)
    buckets = yaml.safe_load((CONFIGS / "quickstart.yaml").read_text())["data"]["buckets"]
    data = LatentDataModule(
        demo.dir / "clips", latents, str(demo.dir / "base"), buckets, fps=16, split=Splitting(val_fraction=0.5)
    )
    planned = data.sampler(num_replicas=2, rank=0).exposures(9 * 2)
    with (tmp_path / "runs" / "quickstart" / "0" / "exposure.csv").open() as file:
        counted = {row["clip_id"]: int(row["exposures"]) for row in csv.DictReader(file) if row["split"] == "train"}
    assert counted == dict(zip([clip.clip_id for clip in data.train_clips], planned.tolist(), strict=True))
    assert sum(counted.values()) == 9 * 2 * 2


@pytest.mark.slow
def test_a_rank_that_dies_is_told_and_two_go_on_to_the_divergence_that_stops_both(quickstart, tmp_path):
    options = {"trainer__max_steps": 120, "trainer__val_check_interval": 2, "model__optimizer__init_args__lr": 0.006}
    words = quickstart(trainer__devices=2, trainer__strategy="ddp", trainer__enable_progress_bar="false", **options)
    run = tmp_path / "runs" / "quickstart" / "0"
    last = run / "checkpoints" / "last.ckpt"
    left = start(words, tmp_path)
    while left.poll() is None and not last.exists():
        time.sleep(0.05)
    assert left.poll() is None, left.communicate()[1]
    os.kill(children_of(left.pid)[0], signal.SIGKILL)
    _, error = left.communicate(timeout=60)
    assert left.returncode == 2
    told = [line for line in error.splitlines() if line and "warning" not in line]
    assert len(told) == 1, error
    assert told[0].startswith(
        "vidlit: error: rank 1 of 2 died (killed by SIGKILL), and rank 0 cannot go on without it."
    )
    assert told[0].endswith("What was saved is whole: go on with --ckpt_path last.")
    assert json.loads((run / "summary.json").read_text())["reason"] == "Another rank died."

    fit([*words, "--ckpt_path=last"], tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "divergence", summary["reason"]
    assert 0 < summary["kept_step"] == summary["best_step"] < summary["stop_step"]
