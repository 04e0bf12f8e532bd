"""``vidlit init``: on real folders, for every family, with cards of many sizes."""

import csv
import shutil
import time

import pytest
import yaml

from tests.test_families_fit import TINY
from vidlit.__main__ import main
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.commands.starting.shipped_configs import shipped_configs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "500")  # nothing is wrapped
    return tmp_path


def written(path):
    """The config as `fit` reads it, and as it stands in the file."""
    return ParseOnly(["fit", "--config", str(path)]).config["fit"], yaml.safe_load(path.read_text())


@pytest.mark.parametrize("family", shipped_configs())
def test_every_family_gets_a_config_that_plan_and_fit_take(family, demo, here, capsys):
    """With the multiples of the published models, on whose tiny likenesses `plan` then runs."""
    assert main(["init", "mine", "--source", str(demo.dir / "clips"), "--family", family]) == 0
    printed = capsys.readouterr().out
    assert "12 clips with captions in 6 recordings (metadata.csv)" in printed
    assert "vidlit plan --config mine.yaml" in printed
    config, values = written(here / "mine.yaml")
    shipped = shipped_configs()[family]
    assert config.model.base == shipped.base
    assert values["run"]["name"] == "mine"
    assert values["data"]["source"] == str(demo.dir / "clips")
    assert values["data"]["fps"] == shipped.values["data"]["fps"]
    assert "of 6 recordings 1 are for validation, 5 for training" in (here / "mine.yaml").read_text()
    for section in ("model", "trainer"):  # what is not filled in is as it was
        kept = {k: v for k, v in shipped.values[section].items() if k not in ("max_steps", "accumulate_grad_batches")}
        assert kept.items() <= values[section].items()
    comments = [line.strip() for line in shipped.text.splitlines() if line.strip().startswith("#")]
    missing = {line for line in comments if line not in (here / "mine.yaml").read_text()}
    assert all(f"configs/{shipped.name}.yaml" in line for line in missing)
    make, _ = TINY.get(shipped.name, TINY["ltx2_lora"])
    words = ["--model.base", str(make(here / "base")), "--model.audio", "off"]
    assert main(["plan", "--config", "mine.yaml", *words]) == 0
    assert " recordings, val " in capsys.readouterr().out


def test_real_clips_of_many_sizes(shared_videos, here, capsys):
    began = time.monotonic()
    assert main(["init", "real", "--source", str(shared_videos / "real"), "--family", "ltx_video"]) == 0
    assert time.monotonic() - began < 30
    printed = capsys.readouterr().out
    assert "with sound" in printed
    assert "looked at 40" in printed
    make, _ = TINY["ltx_video_lora"]
    assert main(["plan", "--config", "real.yaml", "--model.base", str(make(here / "base"))]) == 0
    planned = capsys.readouterr().out
    used = int(planned.partition(" clips of ")[0].rpartition(" ")[2])
    assert used >= 80  # of 89


def test_large_clips_train_in_large_buckets_beside_small_ones(shared_videos, here, capsys):
    assert main(["init", "content", "--source", str(shared_videos / "content"), "--family", "wan2_1_1_3b"]) == 0
    _, values = written(here / "content.yaml")
    assert any("x480x832" in bucket for bucket in values["data"]["buckets"])
    assert not any(bucket.startswith("1x") for bucket in values["data"]["buckets"])


def test_a_base_on_disk_says_its_family_and_its_multiples(demo, here, capsys):
    assert main(["init", "mine", "--source", str(demo.dir / "clips"), "--base", str(demo.dir / "base")]) == 0
    config, values = written(here / "mine.yaml")
    assert config.model.base == str(demo.dir / "base")
    assert "The shipped ltx_video_lora filled in" in (here / "mine.yaml").read_text()
    assert main(["plan", "--config", "mine.yaml"]) == 0
    assert values["data"]["buckets"]


@pytest.mark.slow
def test_what_is_written_trains(demo, here, capsys):
    assert main(["init", "mine", "--source", str(demo.dir / "clips"), "--base", str(demo.dir / "base")]) == 0
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu", "--trainer.accumulate_grad_batches", "1"]
    words += ["--samples.num_audit", "0", "--samples.num_videos", "1", "--samples.num_steps", "2"]
    assert main(["fit", "--config", "mine.yaml", *words]) == 0
    assert (here / "runs" / "mine" / "0" / "weights" / "pytorch_lora_weights.safetensors").is_file()


def test_too_few_recordings_get_a_cap(demo, here):
    folder = here / "clips"  # found by its name
    folder.mkdir()
    with (demo.dir / "clips" / "metadata.csv").open() as file:
        rows = list(csv.reader(file))[:5]
    for name, *_ in rows[1:]:
        shutil.copy(demo.dir / "clips" / name, folder)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert main(["init", "few"]) == 0
    config, values = written(here / "few.yaml")
    assert values["data"]["source"] == "clips"
    assert config.data.split.val_fraction == 0
    assert config.exposure.hard_cap == 20
    assert values["trainer"]["accumulate_grad_batches"] == 2


def test_a_file_that_is_there_is_kept(demo, here, capsys):
    (here / "mine.yaml").write_text("own: work\n")
    words = ["init", "mine", "--source", str(demo.dir / "clips")]
    assert main(words) == 2
    assert "mine.yaml is there already: --overwrite replaces it" in capsys.readouterr().err
    assert (here / "mine.yaml").read_text() == "own: work\n"
    assert main([*words, "--output", "other/mine.yaml"]) == 0
    assert main([*words, "--overwrite"]) == 0
    assert (here / "mine.yaml").read_text() == (here / "other" / "mine.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mine"], "Which clips?"),
        (["mine", "--source", "nothing"], "no such folder"),
        (["mine", "--source", "bare"], "1 videos but no captions"),
        (["mine", "--source", "{clips}", "--family", "sora"], "there is no such family. There are ltx_video, "),
        (["mine", "--source", "{clips}", "--base", "someone/else"], "Name its family, too"),
        (["mine", "--source", "{clips}", "--base", "bare"], "is not a complete diffusers folder"),
        (["../mine", "--source", "{clips}"], "a run's name is the name of one folder"),
    ],
)
def test_what_cannot_be_used_is_said(words, said, demo, here, capsys):
    (here / "bare").mkdir()
    shutil.copy(next((demo.dir / "clips").glob("*.mp4")), here / "bare")
    assert main(["init", *(word.format(clips=demo.dir / "clips") for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert list(here.glob("*.yaml")) == []


def test_without_a_name_the_families_are_listed(here, capsys):
    assert main(["init"]) == 0
    printed = capsys.readouterr().out
    assert all(f"  {family} " in printed for family in shipped_configs())
    assert max(map(len, printed.splitlines())) < 110


def test_clips_in_a_bucket(demo, here, bucket, monkeypatch, capsys):
    url, fs = bucket
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    for path in (demo.dir / "clips").iterdir():
        fs.put(str(path), f"{url}/clips/{path.name}")
    assert main(["init", "mine", "--source", f"{url}/clips"]) == 0
    assert "looked at 8: " in capsys.readouterr().out
    assert written(here / "mine.yaml")[1]["data"]["source"] == f"{url}/clips"
