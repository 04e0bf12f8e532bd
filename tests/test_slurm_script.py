"""The shipped SLURM script, with stand-ins for what only a cluster has."""

import os
import subprocess

import pytest

from tests.test_configs import CONFIGS
from vidlit.commands.cli.parse_only import ParseOnly


def submit(folder, srun_code):
    """Run the script with an srun that only writes down its words; returns exit code, srun's and scontrol's words."""
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, code in (("srun", srun_code), ("scontrol", 0)):
        tool = bin_folder / name
        tool.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {folder}/{name}.txt\nexit {code}\n')
        tool.chmod(0o755)
    slurm = {"JOB_NAME": "vidlit", "JOB_ID": "7", "JOB_NUM_NODES": "2", "NTASKS_PER_NODE": "8", "NTASKS": "16"}
    environment = {"PATH": f"{bin_folder}:{os.environ['PATH']}", **{f"SLURM_{k}": v for k, v in slurm.items()}}
    config = str(CONFIGS / "wan2_1_14b_fsdp.yaml")
    script = ["bash", str(CONFIGS / "slurm_multi_node.sh"), "--config", config]
    done = subprocess.run(script, cwd=folder, env=environment, timeout=60)
    written = [folder / f"{name}.txt" for name in ("srun", "scontrol")]
    return done.returncode, *(path.read_text().splitlines() if path.exists() else [] for path in written)


def test_its_words_are_understood(tmp_path):
    code, words, _ = submit(tmp_path, 0)
    assert code == 0
    assert words[0] == ".venv/bin/vidlit"
    config = ParseOnly(words[1:]).config.fit
    assert (config.trainer.num_nodes, config.trainer.devices) == (2, "8")
    assert config.trainer.strategy.init_args.data_parallel_size == 16
    assert config.run.name == "vidlit-7"
    assert config.ckpt_path is None


def test_it_goes_on_from_its_own_last_checkpoint(tmp_path):
    (tmp_path / "runs/vidlit-7/0/checkpoints/last.ckpt").mkdir(parents=True)
    _, words, _ = submit(tmp_path, 0)
    assert words[-2:] == ["--ckpt_path", "last"]


@pytest.mark.parametrize(("code", "requeued"), [(138, True), (143, True), (2, False)])
def test_a_saved_job_queues_again_and_a_failed_one_does_not(tmp_path, code, requeued):
    found, _, control = submit(tmp_path, code)
    assert control == (["requeue", "7"] if requeued else [])
    assert found == (0 if requeued else code)
