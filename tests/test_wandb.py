"""A real offline run of Weights & Biases, named in YAML: no account, no network, files in the run directory."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from vidlit.__main__ import main


def records(run_file):
    """What W&B wrote, through its own reader."""
    command = [str(Path(sys.executable).parent / "wandb"), "leet", "inspect", "--json", str(run_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"this release of wandb cannot print its records: {done.stderr[:200]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.fixture
def tripwire(monkeypatch):
    """A proxy that nobody may ask: both this process's and W&B's own service would go through it."""
    server = socket.create_server(("127.0.0.1", 0))
    server.setblocking(False)
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        for spelling in (name, name.lower()):
            monkeypatch.setenv(spelling, f"http://127.0.0.1:{server.getsockname()[1]}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    yield server
    server.close()


def test_offline_logger_from_yaml(quickstart, tmp_path, monkeypatch, tripwire):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    outside = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            outside.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    config = tmp_path / "wandb.yaml"
    logger = {
        "class_path": "lightning.pytorch.loggers.WandbLogger",
        "init_args": {"project": "vidlit-test", "offline": True},
    }
    config.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    try:
        assert main([*quickstart(trainer__max_steps=8), "--config", str(config)]) == 0
    finally:
        import wandb

        wandb.finish()

    run = tmp_path / "runs" / "quickstart" / "0"
    (run_file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert not list(home.glob("**/*.wandb"))
    assert not (home / "wandb").exists()
    assert outside == []
    with pytest.raises(BlockingIOError):
        tripwire.accept()

    # metrics.csv is still there, with the same numbers
    assert "val/log_ratio" in (run / "metrics.csv").read_text().splitlines()[0]
    assert (run / "config.yaml").is_file()
    printed = json.dumps(records(run_file))
    for name in ("train/loss", "val/loss", "val/log_ratio", "probe/loss", "divergence/gap", "exposure/mean"):
        assert name in printed, name
