"""A run that goes on: with which clips, with which options, and where it says so."""

import csv
import json
import shutil

import pytest
import torch
import yaml

from tests.conftest import quickstart_words
from vidlit.__main__ import main
from vidlit.data.demo_folder import Demo
from vidlit.runs.directory import RunDirectory
from vidlit.runs.lock import RunLock


@pytest.fixture(scope="module")
def begun(tmp_path_factory, demo):
    """Clips of its own, and a run of four steps on them."""
    root = tmp_path_factory.mktemp("begun")
    made = Demo(root / "demo", num_videos=6, clips_per_video=2)
    shutil.copytree(demo.dir, made.dir)
    words = quickstart_words(made, root / "latents", root / "runs")
    assert main(words(trainer__max_steps=4)) == 0
    return root, made


@pytest.fixture
def run(begun, tmp_path):
    """A copy of the run and its clips, the words that go on with it, and where it is."""
    root, made = begun
    shutil.copytree(root, tmp_path / "copy")
    copied = Demo(tmp_path / "copy" / "demo", made.num_videos, made.clips_per_video)
    words = quickstart_words(copied, tmp_path / "copy" / "latents", tmp_path / "copy" / "runs")
    directory = RunDirectory(tmp_path / "copy" / "runs" / "quickstart" / "0")

    def resumed(command="fit", **overrides):
        options = {"trainer__max_steps": 8} if command == "fit" else {"trainer__max_steps": 4}
        return [*words(command, **{**options, **overrides}), "--ckpt_path", "last"]

    return resumed, directory, copied.dir / "clips"


def groups_of(directory):
    path = directory.last_checkpoint
    return torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]


def test_a_resumed_run_says_so_and_records_what_was_changed(run, capsys):
    resumed, directory, _ = run
    asked = {"lr": 1e-5, "weight_decay": 0.25}
    options = [f"--model.optimizer.init_args.{name}={value}" for name, value in asked.items()]
    assert main([*resumed(exposure__hard_cap=1000), *options]) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("resumed"))
    assert said.startswith(f"resumed from step 4 of {directory.path}; ")
    assert "; exposure.hard_cap None -> 1000.0; " in said
    assert "; model.optimizer.init_args.lr 0.002 -> 1e-05; " in said
    for group in groups_of(directory):
        assert {name: group[name] for name in asked} == asked
    (line,) = map(json.loads, directory.resumes.read_text().splitlines())
    assert line["step"] == 4
    assert line["changed"]["exposure.hard_cap"] == [None, 1000]
    assert line["changed"]["trainer.max_steps"] == [4, 8]
    assert line["changed"]["model.optimizer.init_args.lr"][1] == 1e-5
    config = yaml.safe_load(directory.config.read_text())
    assert config["model"]["optimizer"]["init_args"]["lr"] == 1e-5
    assert config["trainer"]["max_steps"] == 8


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--model.adapter={rank: 2, alpha: 1}", "model.adapter"),
        ("--seed_everything=1", "seed_everything"),
        ("--trainer.max_steps=2", "the checkpoint is at step 4, beyond trainer.max_steps 2"),
    ],
)
def test_what_cannot_be_changed_is_refused_and_leaves_the_run_as_it_was(run, capsys, option, told):
    resumed, directory, _ = run
    before = directory.config.read_text(), directory.metrics.read_text()
    assert main([*resumed(), option]) == 2
    assert told in capsys.readouterr().err
    assert (directory.config.read_text(), directory.metrics.read_text()) == before
    assert not directory.resumes.exists()


def test_a_run_that_another_process_trains_is_left_alone(run, capsys):
    resumed, directory, _ = run
    lock = RunLock(directory)
    assert main(resumed()) == 2
    assert "is training in" in capsys.readouterr().err
    lock.release()


def clips_of(directory, side):
    with directory.clips.open(newline="") as file:
        return [row["clip_id"].partition("@")[0] for row in csv.DictReader(file) if row["side"] == side]


def with_caption(clips, video, caption):
    table = clips / "metadata.csv"
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        if row["file_name"] == video:
            row["caption"] = caption
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("side", ["train", "val"])
def test_another_caption_is_told_by_its_clip(run, capsys, side):
    resumed, directory, clips = run
    video = clips_of(directory, side)[0]
    with_caption(clips, video, "Something that was not there before.")
    assert main(resumed()) == 2
    error = capsys.readouterr().err
    assert "of another caption" in error
    assert video in error


@pytest.mark.slow
def test_validation_compares_its_clips_with_those_of_the_run(run, capsys):
    resumed, directory, clips = run
    with_caption(clips, clips_of(directory, "train")[0], "Only training sees this.")
    assert main(resumed("validate")) == 0
    video = clips / clips_of(directory, "val")[0]
    video.write_bytes(video.read_bytes() + b"\0")  # the same pictures, and yet nobody can know that
    capsys.readouterr()
    assert main(resumed("validate")) == 2
    assert f"1 clip is of another file ({video.name}@" in capsys.readouterr().err


@pytest.mark.slow
def test_another_base_is_refused_though_its_weights_have_the_same_shapes(run, capsys):
    from safetensors.torch import load_file, save_file

    resumed, _, clips = run
    moved = clips.parent / "moved"
    (clips.parent / "base").rename(moved)  # the same base elsewhere is no other
    assert main(resumed("validate", model__base=moved)) == 0
    path = next((moved / "transformer").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(path).items()}, path)
    assert main(resumed("validate", model__base=moved)) == 2
    assert "model.base: " in capsys.readouterr().err


def test_weights_are_there_when_samples_fail(run, monkeypatch, capsys):
    resumed, directory, _ = run
    shutil.rmtree(directory.weights, ignore_errors=True)

    def fail(*_, **__):
        raise RuntimeError("the VAE does not fit")

    monkeypatch.setattr("vidlit.signals.sample_videos.sample_clips", fail)
    assert main(resumed(samples__num_videos=1)) == 1
    assert "RuntimeError: the VAE does not fit" in capsys.readouterr().err
    assert list(directory.weights.rglob("*.safetensors"))


@pytest.mark.slow
def test_wandb_tensorboard_and_mlflow_go_on_where_they_were(run, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a server would be more than a test needs
    resumed, directory, _ = run
    place = tmp_path / "logs"
    loggers = [
        {"class_path": "lightning.pytorch.loggers.TensorBoardLogger", "init_args": {"save_dir": str(place)}},
        {
            "class_path": "lightning.pytorch.loggers.MLFlowLogger",
            "init_args": {"tracking_uri": f"file:{tmp_path / 'mlruns'}"},
        },
        {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "p", "offline": True}},
    ]
    for steps in (6, 8):
        assert main([*resumed(trainer__max_steps=steps), f"--trainer.logger={json.dumps(loggers)}"]) == 0
    assert [path.name for path in (place / "lightning_logs").iterdir()] == ["version_0"]
    client = mlflow.MlflowClient(f"file:{tmp_path / 'mlruns'}")
    assert len(client.search_runs([each.experiment_id for each in client.search_experiments()])) == 1
    names = json.loads(directory.loggers.read_text())
    assert set(names) == {"0.TensorBoardLogger", "1.MLFlowLogger", "2.WandbLogger"}
    files = list(directory.path.rglob("*.wandb"))
    assert len(files) == 2
    assert {path.stem.removeprefix("run-") for path in files} == {names["2.WandbLogger"]}
    config = yaml.safe_load(directory.config.read_text())  # a run that is begun with its copy is another one
    assert [logger["init_args"].get("id") for logger in config["trainer"]["logger"]] == [None] * 3
