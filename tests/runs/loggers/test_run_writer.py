"""What W&B, TensorBoard and MLflow get of a real run, through the packages' own readers."""

import json
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger

from vidlit.__main__ import main
from vidlit.runs.directory import RunDirectory
from vidlit.runs.loggers.continued_loggers import group_of, name_of
from vidlit.runs.loggers.run_writer import flat, writer_for

AUDITS = {"samples__num_videos": 1, "samples__num_audit": 2, "samples__every_num_checks": 1, "samples__num_steps": 2}


def test_a_runs_name_and_what_it_belongs_to():
    whole = RunDirectory(Path("runs/mine/0"))
    assert (name_of(whole), group_of(whole)) == ("mine/0", None)
    assert (name_of(whole.refit), group_of(whole.refit)) == ("mine/0/refit", "mine/0")
    fold = RunDirectory(Path("runs/mine/kfold_5/fold_2"))
    assert (name_of(fold), group_of(fold)) == ("mine/kfold_5/fold_2", "mine/kfold_5")


def test_one_level_of_names():
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a/b": 1, "a/c/d": [2], "e": {}}


def test_a_logger_that_takes_numbers_alone(tmp_path):
    assert writer_for(CSVLogger(tmp_path)) is None


def fit_with(quickstart, tmp_path, logger, **options):
    """A small run that is stopped at step 8, with a logger; its directory."""
    path = tmp_path / "logger.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    words = quickstart(trainer__max_steps=8, exposure__hard_cap=4, **AUDITS, **options)
    assert main([*words, "--config", str(path)]) == 0
    return tmp_path / "runs" / "quickstart" / "0"


def test_tensorboard(quickstart, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = {
        "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
        "init_args": {"save_dir": str(tmp_path / "logs")},
    }
    run = fit_with(quickstart, tmp_path, logger)
    (folder,) = (tmp_path / "logs" / "lightning_logs").iterdir()
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert "val/log_ratio" in tags["scalars"]
    assert "exposure/histogram" in tags["histograms"]
    for name in ("samples/audit_00", "samples/audit_01"):
        shown = events.Images(name)
        assert [each.step for each in shown] == [0, 4, 8]
        assert all(each.encoded_image_string.startswith(b"GIF8") for each in shown)
    assert "samples/00" in tags["images"]

    def text(name):
        return events.Tensors(f"{name}/text_summary")[-1].tensor_proto.string_val[0].decode()

    assert "max_steps: 8" in text("config")
    assert "source_videos" in text("config")
    assert "all weights" in text("tags")
    assert "Stopped by exposures at step 8" in text("alerts")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["reason"] in text("decision")
    assert "stopped_by: exposure" in text("decision")
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(-summary["kept_gain"])
    table = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"trainer/max_steps" in table
    assert b"dataset/source_videos/val" in table
    assert not any(b"scene_0" in path.read_bytes() for path in folder.iterdir())  # counts, no file names


def test_mlflow(quickstart, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server would be more than a test needs
    uri = f"file:{tmp_path / 'mlruns'}"
    logger = {"class_path": "lightning.pytorch.loggers.MLFlowLogger", "init_args": {"tracking_uri": uri}}
    run = fit_with(quickstart, tmp_path, logger)
    assert (
        main(
            [*quickstart(trainer__max_steps=12, ckpt_path="last", **AUDITS), "--config", str(tmp_path / "logger.yaml")]
        )
        == 0
    )
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([each.experiment_id for each in client.search_experiments()])
    data, summary = found.data, json.loads((run / "summary.json").read_text())
    assert found.info.run_name == "quickstart/0"
    assert "val/log_ratio" in data.metrics
    assert data.params["trainer/max_steps"] == "8"  # as the run began: MLflow changes none
    assert data.params["dataset/source_videos/val"] == "3"
    assert "all weights" in data.tags["tags"]
    assert "group" not in data.tags
    assert "Stopped by exposures at step 8" in data.tags["alert"]
    assert data.tags["mlflow.note.content"] == summary["reason"]
    assert data.tags["decision.stopped_by"] == summary["stopped_by"] == "max_steps"
    assert data.metrics["kept/val/log_ratio"] == pytest.approx(-summary["kept_gain"])
    artifacts = Path(found.info.artifact_uri.removeprefix("file:").replace("//", "/"))
    assert yaml.safe_load((artifacts / "config.yaml").read_text())["trainer"]["max_steps"] == 12
    assert json.loads((artifacts / "decision.json").read_text())["kept_step"] == summary["kept_step"]
    assert [path.name for path in sorted((artifacts / "samples" / "audit_00").iterdir())] == [
        f"step_{step:06d}" for step in (0, 4, 8, 12)
    ]
    assert len(list(artifacts.glob("samples/00/step_*/*.mp4"))) >= 1
    assert len(json.loads((artifacts / "exposure" / "histogram" / "step_000008.json").read_text())["values"]) == 3
