"""A real offline run of Weights & Biases, named in YAML: no account, no network, files in the run directory."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from vidlit.__main__ import main
from vidlit.report.workspace import chart_names
from vidlit.runs.logged_names import OWN

CONFIGS = Path(__file__).parents[1] / "configs"


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


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """No key, and a home of its own: what is written outside the run shows up there."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


@pytest.fixture
def outside(monkeypatch):
    """Addresses beyond this machine that were connected to."""
    addresses = []
    connect = socket.socket.connect

    def watched(self, address):
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            addresses.append(address)
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    return addresses


@pytest.fixture
def logger_config(tmp_path):
    """Writes a config with a W&B logger."""

    def write(**arguments):
        logger = {"class_path": "lightning.pytorch.loggers.WandbLogger", **arguments}
        path = tmp_path / "wandb.yaml"
        path.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
        return str(path)

    return write


def history(found):
    """Everything that was logged, by name: the values in order."""
    logged = {}
    for record in found:
        together = {}
        for name, value in record.get("history", {}).get("item", {}).items():
            name, _, part = name.partition(".")  # pictures and histograms come in parts
            if part:
                together.setdefault(name, {})[part] = value
            else:
                together[name] = value
        for name, value in together.items():
            logged.setdefault(name, []).append(value)
    return logged


def final_summary(found):
    """The summary as it stands after all updates."""
    summary = {}
    for record in found:
        summary |= record.get("summary", {}).get("update", {})
    return summary


def test_a_run_without_an_account(
    quickstart, tmp_path, logger_config, no_account, outside, tripwire, monkeypatch, capsys
):
    canary = "canary-in-the-mine-0123456789"
    monkeypatch.setenv("HF_TOKEN", canary + "-environment")
    config = logger_config(
        init_args={"project": "vidlit-test"}, dict_kwargs={"settings": {"api_key": canary.replace("-", "") + "0" * 20}}
    )
    audits = {"samples__num_audit": 4, "samples__every_num_checks": 1, "samples__num_steps": 2}
    (tmp_path / "mine.txt").write_text("A red disc moves right.")
    words = quickstart(
        trainer__max_steps=8,
        samples__num_videos=2,
        samples__prompts=tmp_path / "mine.txt",
        exposure__hard_cap=4,
        **audits,
    )
    assert main([*words, "--config", config]) == 0

    run = tmp_path / "runs" / "quickstart" / "0"
    (run_file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert "No W&B key is set" in capsys.readouterr().out
    assert not list(no_account.glob("**/*.wandb"))
    assert not (no_account / "wandb").exists()
    assert outside == []
    with pytest.raises(BlockingIOError):
        tripwire.accept()

    # no key in any file of the run: neither the environment's, nor the config's
    for path in (path for path in run.rglob("*") if path.is_file()):
        assert b"canary" not in path.read_bytes(), path

    # metrics.csv is still there, with the same numbers
    assert "val/log_ratio" in (run / "metrics.csv").read_text().splitlines()[0]
    assert "<redacted>" in (run / "config.yaml").read_text()
    found = records(run_file)
    logged = history(found)

    # every chart and picture of the workspace has something to show, but for what only an option logs
    optional = {
        row.name for row in OWN if row.needs in ("samples.metrics", "overfit_stopping.policy", "trainer.accelerator")
    }
    for charts in chart_names(2).values():
        for title, names in charts.items():
            for name in set(names) - optional:
                assert name in logged, f"{name} of {title!r}"
    for number in range(4):
        videos = logged[f"samples/audit_{number:02d}"]
        assert [video["_type"] for video in videos] == ["video-file"] * 3  # at steps 0, 4 and 8: side by side over time
        assert videos[0]["caption"].endswith("background.")
    assert "samples/01" in logged
    assert [video["caption"] for video in logged["samples/prompt_00"]] == ["A red disc moves right."] * 3

    abouts = [record["run"] for record in found if "run" in record]
    assert {about["display_name"] for about in abouts} == {"quickstart/0"}
    assert abouts[-1]["tags"] == ["LTXVideo", "base", "all weights"]
    printed = json.dumps(found)
    for name in ("captions", "source_videos", "vidlit-test", "val_check_interval", "decision/stopped_by"):
        assert name in printed, name
    assert "Stopped by exposures at step 8" in printed  # the alert
    assert "scene_0" not in printed  # counts, no file names
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "exposure"
    assert final_summary(found)["val/log_ratio"] == pytest.approx(-summary["kept_gain"])


@pytest.mark.slow
def test_file_names_only_where_asked(quickstart, tmp_path, logger_config, no_account):
    config = logger_config(init_args={"project": "vidlit-test", "offline": True})
    assert main([*quickstart(trainer__max_steps=4, logging__file_names=True), "--config", config]) == 0
    (run_file,) = (tmp_path / "runs").rglob("run-*.wandb")
    assert "scene_0" in json.dumps(records(run_file))


@pytest.mark.slow
def test_the_sweep_file_works(quickstart, tmp_path, no_account):
    """Its command, with the first values a sweep might try."""
    sweep = yaml.safe_load((CONFIGS / "sweep.yaml").read_text())
    assert sweep["metric"] == {"name": "val/log_ratio", "goal": "minimize"}
    values = {
        name: each["values"][0] if "values" in each else each["min"] for name, each in sweep["parameters"].items()
    }
    assert set(values) == {"model.optimizer.init_args.lr", "model.adapter.rank"}
    tried = [f"--{name}={value}" for name, value in values.items()]
    program, *words = [part for word in sweep["command"] for part in (tried if word == "${args}" else [word])]
    assert program == "vidlit"
    config = words.index("--config") + 1
    assert (CONFIGS.parent / words[config]).is_file()
    words[config] = str(CONFIGS.parent / words[config])
    smaller = [word for word in quickstart(trainer__max_steps=4)[3:] if not word.startswith("--run.name")]
    assert main([*words, *smaller]) == 0
    (run_file,) = (tmp_path / "runs" / "sweep").rglob("run-*.wandb")
    assert "val/log_ratio" in final_summary(records(run_file))
    assert (tmp_path / "runs" / "sweep" / "0" / "weights" / "pytorch_lora_weights.safetensors").is_file()


def raise_error(self, *args, **kwargs):
    raise ConnectionError("no route to host")


def hang(self, *args, **kwargs):
    time.sleep(600)


@pytest.mark.slow
@pytest.mark.parametrize(("broken", "warning"), [(raise_error, "no route to host"), (hang, "still busy")])
def test_a_broken_logger_changes_nothing(
    quickstart, tmp_path, logger_config, no_account, monkeypatch, capsys, broken, warning
):
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.log_metrics", broken)
    monkeypatch.setattr("vidlit.runs.loggers.background_logger.PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr("lightning.pytorch.loggers.WandbLogger.experiment", property(broken))
    began = time.monotonic()
    assert main(quickstart(trainer__max_steps=4)) == 0
    without = time.monotonic() - began
    config = logger_config(init_args={"project": "vidlit-test"})
    began = time.monotonic()
    assert main([*quickstart(trainer__max_steps=4), "--config", config]) == 0
    assert time.monotonic() - began < 3 * without + 10
    assert warning in capsys.readouterr().err
    plain, logged = (tmp_path / "runs" / "quickstart" / version / "decisions.jsonl" for version in "01")
    assert plain.read_text() == logged.read_text()
