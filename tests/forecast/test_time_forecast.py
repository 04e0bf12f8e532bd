"""Seconds, hours and cost of a run, and the speed that a fit leaves for the next plan."""

import datetime
import io
import json
from dataclasses import replace
from types import SimpleNamespace

import platformdirs
import pytest
import torch
from rich.console import Console

from tests.models.bases import EVERY, size_of
from vidlit.__main__ import main
from vidlit.callbacks import throughput
from vidlit.commands.planning.time_words import print_time
from vidlit.forecast.sample_shapes import sample_batch
from vidlit.forecast.time_forecast import (
    MEASURED,
    RunKind,
    TimeForecast,
    measured_here,
    operations_of_a_sample,
    remember_speed,
)
from vidlit.models.adapters import LoRA
from vidlit.training.flops import flops_of_a_sample
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket

KIND = RunKind("H100", "WanTransformer3DModel", lora=False, compiled=True, base_dtype="float32")
TIME = TimeForecast(
    tera_operations_per_step=385.8,
    max_steps=3000,
    typical_stop_step=600,
    typical_stop_exposures=60.0,
    checks_share=0.1,
    checks_share_to_typical_stop=0.3,
    audits_share=0.1,
    gpus=1,
    gpu="H100",
    efficiency=0.398,
    gpu_price=2.5,
)


def shown(time):
    console = Console(file=io.StringIO(), width=1000)
    print_time(time, console)
    return console.file.getvalue()


def test_time_is_operations_over_what_the_card_reaches():
    """Wan 1.3B, all weights: 385.8 TFLOP at 39.8 % of 989 a second are 0.98 s."""
    assert TIME.seconds_per_step == pytest.approx(0.980, rel=1e-3)
    assert TIME.hours_to_max_steps == pytest.approx(3000 * 0.980 * 1.2 / 3600, rel=1e-3)
    assert TIME.hours_to_typical_stop == pytest.approx(600 * 0.980 * 1.4 / 3600, rel=1e-3)
    assert TIME.as_dict()["cost_to_max_steps"] == pytest.approx(2.5 * TIME.hours_to_max_steps)
    several = replace(TIME, gpus=4)
    assert several.seconds_per_step == TIME.seconds_per_step / 4
    assert several.cost(several.hours_to_max_steps) == pytest.approx(TIME.cost(TIME.hours_to_max_steps))
    assert replace(TIME, low_precision=False).seconds_per_step == pytest.approx(0.98 * 989 / 494, rel=1e-3)
    assert replace(TIME, gpu_price=None).as_dict()["cost_to_max_steps"] is None


@pytest.mark.parametrize("name", ["hunyuan_video", "mochi"])  # two lists of blocks; a last block of another kind
def test_a_few_blocks_tell_the_operations_of_all(name, tmp_path):
    EVERY[name](tmp_path)
    file = tmp_path / "transformer" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {key: 5 for key in ("num_layers", "num_single_layers") if key in config}))
    module = VideoDiffusionModule(str(tmp_path), LoRA(rank=2))
    bucket = Bucket(*size_of(module.family))
    whole = flops_of_a_sample(module.family, module.structure(), sample_batch(module.family, bucket, 1))
    clips = SimpleNamespace(train_clips=3 * [SimpleNamespace(bucket=bucket)])
    assert operations_of_a_sample(module, clips) == whole


def test_it_is_told_in_words():
    text = shown(TIME)
    assert "0.98 s a step (386 TFLOP a step) on H100, at 39.8 % of its peak" in text
    assert "59 min to step 3,000, 2.45 at 2.5 a GPU hour, checks (10 %) and audits (at most 10 %) with it" in text
    assert "14 min to step 600, by when each recording was seen 60 times" in text
    assert "by when" not in shown(replace(TIME, max_steps=600))
    unknown = replace(TIME, gpu=None, efficiency=None, source="the GPU's name is not known")
    assert unknown.as_dict()["seconds_per_step"] is None
    assert shown(unknown) == (
        "time: 386 TFLOP a step; how long that takes is not said, for the GPU's name is not known: name it with --gpu "
        "H100\n"
    )


def test_the_kind_of_a_run_names_what_its_speed_depends_on(demo):
    base = str(demo.dir / "base")
    lora = VideoDiffusionModule(base, adapter=LoRA(rank=2), memory=Memory("bfloat16", compile=False))
    kind = RunKind.of(lora, "H100")
    assert kind == RunKind("H100", "LTXVideoTransformer3DModel", lora=True, compiled=False, base_dtype="bfloat16")
    assert kind.stated == (0.132, "measured for a LoRA of LTXVideo on an H100, not compiled")
    assert RunKind.of(VideoDiffusionModule(base), "H100").compiled
    rounded = VideoDiffusionModule(base, adapter=LoRA(rank=2), memory=replace(lora.memory, float8_matmuls=True))
    assert RunKind.of(rounded, "H100").file != kind.file
    other = replace(KIND, transformer="MochiTransformer3DModel")
    assert other.stated[0] == pytest.approx((0.398 + 0.299) / 2)
    assert "Wan and LTXVideo" in other.stated[1]
    assert set(MEASURED) == {(lora, compiled) for lora in (True, False) for compiled in (True, False)}


def test_a_run_leaves_its_speed_once_it_is_steady():
    assert measured_here(KIND) is None
    remember_speed(KIND, [0.01, 0.02, 0.4])  # too short to tell
    assert measured_here(KIND) is None
    remember_speed(KIND, [0.01, 0.02, 0.4, 0.1, 0.42])
    assert measured_here(KIND) == (0.4, datetime.date.today().isoformat())
    assert measured_here(replace(KIND, compiled=False)) is None
    assert measured_here(replace(KIND, card="RTX 6000 Ada")) is None
    assert set(json.loads(KIND.file.read_text())) == {"mfu", "date"}
    assert KIND.file.name == "H100-WanTransformer3DModel-all-compiled-float32.json"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"mfu": 2, "date": "2026-11-27"}', '{"mfu": 0.3, "date": "?"}'])
def test_a_damaged_file_is_none(text):
    KIND.file.parent.mkdir(parents=True)
    KIND.file.write_text(text)
    assert measured_here(KIND) is None
    KIND.file.write_bytes(b"\xff\xfe\x00")
    assert measured_here(KIND) is None


def test_a_cache_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "file")
    remember_speed(KIND, [0.4] * 9)
    assert measured_here(KIND) is None


def test_a_fit_keeps_the_speed_of_a_gpu(quickstart, monkeypatch):
    """Of one that is none: its name is asked for when training ends. A CPU's is not kept."""
    real, kept = throughput.Throughput.on_train_end, []

    def on_train_end(self, *given):
        real(self, *given)
        assert kept == []
        with monkeypatch.context() as patched:
            patched.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
            patched.setattr(VideoDiffusionModule, "device", torch.device("cuda"))
            real(self, *given)

    monkeypatch.setattr(throughput.Throughput, "on_train_end", on_train_end)
    monkeypatch.setattr(throughput, "remember_speed", lambda *given: kept.append(given))
    assert main(quickstart(trainer__max_steps=6, trainer__val_check_interval=6)) == 0
    ((kind, logged),) = kept
    assert (kind.card, kind.transformer, kind.lora) == ("H100", "LTXVideoTransformer3DModel", False)
    assert len(logged) == 6
    assert all(0 < mfu for mfu in logged)


def test_a_plan_estimates_time_for_a_card_that_is_named(quickstart, capsys):
    kind = RunKind("H100", "LTXVideoTransformer3DModel", lora=False, compiled=True, base_dtype="float32")
    remember_speed(kind, [0.25] * 5)
    assert main([*quickstart("plan"), "--json", "--gpu", "H100", "--gpu-price", "2.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    time = found["time"]
    assert time["gpu"] == "H100"
    assert time["efficiency"] == 0.25
    assert time["source"].startswith("measured on this machine on 2")
    assert time["seconds_per_step"] == pytest.approx(time["tera_operations_per_step"] / (494 * 0.25))  # 32-true
    assert time["checks_share"] == found["checks"]["share"]
    assert time["audits_share"] == 0.0
    assert time["cost_to_max_steps"] == pytest.approx(2.5 * time["hours_to_max_steps"])
    assert time["typical_stop_step"] == found["typical_stop"]["steps"] == found["max_steps"]


def test_a_card_without_a_known_peak_is_refused_by_name(quickstart, capsys):
    assert main([*quickstart("plan"), "--gpu", "GTX 1"]) == 2
    assert "--gpu GTX 1: how fast it is is not known. Known are GB200, " in capsys.readouterr().err


def test_no_time_is_told_where_a_fit_would_be_on_a_cpu(quickstart, capsys):
    assert main([*quickstart("plan"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["time"] is None
