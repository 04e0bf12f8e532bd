"""The command line as a user meets it: words in; exit code, output and files out."""

import csv
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml

from vidlit import __version__
from vidlit.__main__ import main
from vidlit.commands.cli.configs import find_config
from vidlit.commands.cli.lightning_cli import RUN_DIRECTORY_VARIABLE
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.latents.store import LatentStore
from vidlit.models.encoders import BaseEncoders


def run_main(words):
    """Exit code, however the command ends."""
    try:
        return main(words)
    except SystemExit as ended:
        return ended.code


def error_line(capsys):
    """The one line that says what is wrong."""
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    start = printed.index("vidlit: error: ")
    return printed[start:].strip()


def pair(folder, name, video=None):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.txt").write_text("a caption")
    if video is None:
        (folder / f"{name}.mp4").write_bytes(b"this is no video" * 50)
    else:
        shutil.copy(video, folder / f"{name}.mp4")


def make_missing(demo, folder):
    return {"data__source": folder / "nowhere"}, ["nowhere", "no such folder"]


def make_broken(demo, folder):
    pair(folder, "a")
    pair(folder, "b")
    return {"data__source": folder}, ["no clip of", "a.mp4: is not a video", "b.mp4: is not a video"]


def make_single(demo, folder):
    pair(folder, "a", demo.dir / "clips" / "scene_000_take_0.mp4")
    return {"data__source": folder, "data__split__test_fraction": 0.2}, [
        "1 recording cannot be split",
        "Add clips of other videos",
        "`group`",
    ]


def make_bucket(demo, folder):
    return {"data__buckets": "[16x48x80]"}, ["bucket 16x48x80 does not fit", "17x48x80"]


def make_unreadable_bucket(demo, folder):
    return {"data__buckets": "[large]"}, ["bucket 'large'", "FRAMESxHEIGHTxWIDTH"]


def make_base(demo, folder):
    return {"model__base": folder / "base"}, ["base does not exist", "hub name"]


def make_checkpoint(demo, folder):
    return {"ckpt_path": folder / "none.ckpt"}, ["none.ckpt", "no such file"]


def make_no_last(demo, folder):
    return {"ckpt_path": "last"}, ["last.ckpt", "Start one without --ckpt_path"]


def make_fraction(demo, folder):
    return {"data__split__val_fraction": 1.5}, ["val_fraction 1.5", "below 1"]


def make_option(demo, folder):
    return {"trainer.max_stepss": 3}, ["--trainer.max_stepss"]


def make_value(demo, folder):
    return {"overfit_stopping.policy.divergence": "maybe"}, ["divergence", "maybe", "stop"]


def make_setting(demo, folder):
    return {"divergence.settings.min_checks": 2}, ["min_checks", "at least 6"]


MAKERS = [
    make_missing,
    make_broken,
    make_single,
    make_bucket,
    make_unreadable_bucket,
    make_base,
    make_checkpoint,
    make_no_last,
    make_fraction,
    make_option,
    make_value,
    make_setting,
]


@pytest.mark.parametrize("make", MAKERS)
def test_bad_input_is_one_clear_line(quickstart, demo, tmp_path, capsys, make):
    overrides, words = make(demo, tmp_path / "folder")
    assert run_main(quickstart(**overrides)) == 2
    line = error_line(capsys)
    assert len(line.splitlines()) == 1
    for word in words:
        assert word in line, line


@pytest.mark.parametrize("with_video", [False, True])
def test_a_folder_without_captions_lists_the_accepted_layouts(quickstart, demo, tmp_path, capsys, with_video):
    folder = tmp_path / "folder"
    folder.mkdir()
    if with_video:
        shutil.copy(demo.dir / "clips" / "scene_000_take_0.mp4", folder)
    assert run_main(quickstart(data__source=folder)) == 2
    first, *layouts = error_line(capsys).splitlines()
    assert str(folder) in first
    assert ("no captions" if with_video else "no videos") in first
    assert "metadata.csv" in "".join(layouts)


def test_bad_input_leaves_no_empty_run_behind(quickstart, tmp_path):
    assert run_main(quickstart(data__source=tmp_path / "nowhere")) == 2
    assert not (tmp_path / "runs" / "quickstart" / "0").exists()


REFUSED = {
    "trainer__overfit_batches": (1, "training batches never end here"),
    "trainer__accelerator": ("nonsense", "Lightning refuses this"),
    "trainer__devices": (0, "Lightning refuses this"),
    "trainer__val_check_interval": (0.5, "Lightning refuses this"),
    "trainer__enable_checkpointing": ("false", "Lightning refuses this"),
    "run__name": ("../../x", "the name of one folder"),
    "weights_only": ("false", "no such option"),
    "ckpt_path": (__file__, "is not a checkpoint"),
}


@pytest.mark.parametrize(
    "option", [pytest.param(name, marks=pytest.mark.slow if "devices" not in name else ()) for name in REFUSED]
)
def test_what_lightning_refuses_is_one_line_as_well(quickstart, tmp_path, capsys, option):
    value, said = REFUSED[option]
    assert run_main(quickstart(**{option: value})) == 2
    line = error_line(capsys)
    assert len(line.splitlines()) == 1
    assert said in line
    assert not list(tmp_path.glob("runs/*/*"))


@pytest.mark.slow
def test_without_validation_all_steps_are_trained_and_the_last_is_kept(quickstart, tmp_path, capsys):
    assert run_main(quickstart(trainer__limit_val_batches=0, trainer__max_steps=4)) == 0
    assert "The last step's weights are kept (4)" in capsys.readouterr().out
    assert (tmp_path / "runs" / "quickstart" / "0" / "weights" / "transformer").is_dir()


def test_debug_shows_the_traceback(quickstart, tmp_path):
    with pytest.raises(ValueError, match="no such folder"):
        main([*quickstart(data__source=tmp_path / "nowhere"), "--debug"])


def test_a_failed_command_does_not_leak_into_the_next(quickstart, tmp_path):
    assert run_main(quickstart(data__source=tmp_path / "nowhere")) == 2
    assert RUN_DIRECTORY_VARIABLE not in os.environ


def test_an_unknown_command_is_one_line(capsys):
    assert run_main(["fitt"]) == 2
    line = error_line(capsys)
    assert len(line.splitlines()) == 1
    assert "fitt" in line


def test_help_version_and_nothing(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"vidlit {__version__}"
    assert main([]) == 2
    assert main(["-h"]) == 0
    assert "start here: vidlit fit" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["fit", "encode", "demo"])
def test_a_commands_help_lists_its_options(command, capsys):
    assert run_main([command, "--help"]) == 0
    printed = capsys.readouterr().out
    assert ("--num_videos" if command == "demo" else "--data.batches.size") in printed


def test_demo_command_writes_clips(tmp_path, capsys):
    words = ["demo", str(tmp_path / "demo"), "--num_videos=2", "--clips_per_video=1"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "2 clips in" in printed
    program, *following = shlex.split(printed.partition("Next: ")[2])
    following[following.index("quickstart")] = str(find_config("quickstart"))
    config = ParseOnly(following).config.fit
    assert (program, config.demo) == ("vidlit", None)
    assert config.data.source == str(tmp_path / "demo" / "clips")
    assert len(list((tmp_path / "demo" / "clips").glob("*.mp4"))) == 2
    assert (tmp_path / "demo" / "base" / "model_index.json").is_file()


def test_encode_fills_the_store_once_and_makes_no_run(quickstart, tmp_path, capsys):
    store = {"data__store": tmp_path / "store"}
    assert main(quickstart("encode", **store)) == 0
    assert "12 clips and 6 captions encoded" in capsys.readouterr().out
    assert main(quickstart("encode", **store)) == 0
    assert "0 clips and 0 captions encoded" in capsys.readouterr().out
    assert not list(tmp_path.glob("runs/*/*"))


def test_validate_measures_a_checkpoint(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    with (run / "metrics.csv").open(newline="") as file:
        (logged,) = [row for row in csv.DictReader(file) if row["val/loss"] and float(row["step"]) == 4]
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main([*quickstart("validate"), f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]) == 0
    printed = capsys.readouterr().out
    for name in ("val/loss", "train_eval/loss", "val/log_ratio"):
        shown = re.search(rf"[ │]{name}\s+\S\s+(\S+)", printed)
        assert float(shown.group(1)) == pytest.approx(float(logged[name]), rel=1e-5), printed
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before  # it only reads


def test_test_measures_a_checkpoint_on_clips_that_training_never_saw(quickstart, tmp_path, capsys):
    options = {"data__split__test_fraction": 0.2, "trainer__max_steps": 4}
    assert main(quickstart(**options)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    with (run / "exposure.csv").open(newline="") as file:
        tested = [row for row in csv.DictReader(file) if row["split"] == "test"]
    assert tested
    assert all(row["exposures"] == "0" for row in tested)
    capsys.readouterr()
    assert main([*quickstart("test", **options), f"--ckpt_path={run / 'checkpoints' / 'best.ckpt'}"]) == 0
    shown = re.search(r"test/loss\s+\S\s+(\S+)", capsys.readouterr().out)
    assert 0.5 < float(shown.group(1)) < 5


def early_stopping(folder):
    """YAML that adds Lightning's own EarlyStopping; with this min_delta no check is an improvement."""
    extra = {
        "class_path": "lightning.pytorch.callbacks.EarlyStopping",
        "init_args": {"monitor": "val/log_ratio", "mode": "min", "patience": 1, "min_delta": 100.0},
    }
    path = folder / "early_stopping.yaml"
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": [extra]}}))
    return ["--config", str(path)]


def test_lightnings_early_stopping_works_from_yaml_alone(quickstart, tmp_path):
    command, *words = quickstart()
    assert main([command, *words, *early_stopping(tmp_path)]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stop_step"] == 8  # the second check is the first without improvement
    assert summary["planned_steps"] == 12
    assert (run / "weights" / "transformer").is_dir()


def test_the_summary_of_a_foreign_stop_is_true(quickstart, tmp_path, capsys):
    command, *words = quickstart()
    assert main([command, *words, *early_stopping(tmp_path)]) == 0
    summary = json.loads((tmp_path / "runs" / "quickstart" / "0" / "summary.json").read_text())
    assert summary["stopped_by"] != "max_steps"
    assert "planned steps were trained" not in capsys.readouterr().out


def signalled(words, tmp_path, number):
    """Exit code, output and run directory of a process that is signalled while it trains."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "vidlit", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    run = tmp_path / "runs" / "quickstart" / "0"
    try:
        deadline = time.monotonic() + 120
        while not (run / "checkpoints" / "last.ckpt").exists():  # the first check is over
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, out, err, run


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_ends_a_real_process_with_a_checkpoint_and_a_summary(quickstart, tmp_path, number):
    words = quickstart(trainer__max_steps=100_000, trainer__val_check_interval=3)
    code, _, err, run = signalled(words, tmp_path, number)
    assert code == 128 + number
    assert "Traceback" not in err
    assert f"interrupted by {number.name}" in err
    assert str(run / "checkpoints" / "last.ckpt") in err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stopped_by"] == "interrupted"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == summary["stop_step"] >= 3
    last_row = (run / "metrics.csv").read_text().splitlines()[-1]
    assert last_row  # the log was flushed
    steps = [json.loads(line)["step"] for line in (run / "decisions.jsonl").read_text().splitlines()]
    assert steps == list(range(3, summary["stop_step"] + 1, 3))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_encoding_ends_it_and_keeps_what_was_encoded(quickstart, tmp_path, monkeypatch, capsys, number):
    store = tmp_path / "store"
    encode_video, calls = BaseEncoders.encode_video, []

    def interrupted(self, frames, sound):
        calls.append(len(frames))
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return encode_video(self, frames, sound)

    # Where the tests themselves run in the background, the shell has made them deaf to SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(BaseEncoders, "encode_video", interrupted)
            assert run_main(quickstart("encode", data__store=store)) == 128 + number
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"interrupted by {number.name}; what was encoded is kept" in capsys.readouterr().err
    kept = len(LatentStore(store).keys("latent"))
    assert 2 <= kept < 12
    assert run_main(quickstart("encode", data__store=store)) == 0
    assert f"{12 - kept} clips" in capsys.readouterr().out


def test_what_could_not_be_encoded_is_tried_again_when_asked(quickstart, tmp_path, capsys, monkeypatch):
    words = quickstart("encode", data__store=tmp_path / "store", data__buckets="[9x48x48]")
    with monkeypatch.context() as broken:
        encode_video = BaseEncoders.encode_video
        broken.setattr(
            BaseEncoders,
            "encode_video",
            lambda self, *given: {name: value * math.nan for name, value in encode_video(self, *given).items()},
        )
        assert run_main(words) == 0
    assert "the video autoencoder gave NaN" in capsys.readouterr().out
    assert run_main(words) == 0
    assert "0 clips and 0 captions encoded" in capsys.readouterr().out
    assert run_main([*words, "--retry_quarantined"]) == 0
    assert "0 quarantined" in capsys.readouterr().out


@pytest.mark.slow
def test_the_advice_that_damage_gives_mends_it(quickstart, tmp_path, capsys):
    options = {"data__store": tmp_path / "store", "trainer__max_steps": 2, "trainer__val_check_interval": 2}
    encode = quickstart("encode", **options)
    assert run_main(encode) == 0
    assert run_main([*encode, "--verify"]) == 0
    assert "all checksums match" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in (tmp_path / "store" / "shards").iterdir()}
    shard, data = next(iter(before.items()))
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert run_main([*encode, "--verify"]) == 2
    printed = capsys.readouterr()
    assert shard.name in printed.out
    (advice,) = re.findall("Run `vidlit (encode --[a-z]+)` with the same configuration", printed.err)
    assert run_main(quickstart("fit", **options)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f" is damaged in {shard}: " in error
    assert f"Run `vidlit {advice}` with the same configuration" in error
    assert run_main([*advice.split()[:1], *encode[1:], *advice.split()[1:]]) == 0
    assert re.search("^1 clips and 0 captions encoded .* 11 clips were stored before", capsys.readouterr().out)
    assert all(path.read_bytes() == data for path, data in before.items() if path != shard)
    assert run_main(quickstart("fit", **options)) == 0
