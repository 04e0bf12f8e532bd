"""Benchmarks that take hours or a GPU, cut down to seconds: they run, and measure both sides."""

import json

import pytest

from benchmarks import attention_kernels, demo_lora, gpu, parts


@pytest.mark.parametrize(
    ("model", "method", "sides"),
    [
        ("ltx", "full", ["vidlit", "plain loop, tuned", "plain loop", "vidlit, 4 batches a step"]),
        ("wan", "lora", ["vidlit", "plain loop, tuned", "plain loop"]),
        ("wan5b", "lora", ["vidlit", "plain loop, tuned", "plain loop"]),
        ("ltx2", "lora", ["vidlit", "plain loop, tuned", "plain loop"]),
    ],
)
def test_gpu_benchmark_measures_all_sides(model, method, sides, tmp_path):
    words = ["--small", "--steps", "1", "--warmup", "1", "--models", model, "--methods", method, "--recompute", "0.5"]
    rows = gpu.main([*words, "--json", str(tmp_path / "rows.json")])
    assert [row["side"] for row in rows] == sides
    for row in rows:
        assert row["ms"] > 0
        assert row["allocated GB"] > 0
        assert row["recomputed"] == 0.5
        assert 0 <= float(row["MFU"].removesuffix(" %")) < 100
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


def test_gpu_benchmark_names_the_rows_for_which_there_was_no_time(capsys):
    rows = gpu.main(["--small", "--models", "wan", "--methods", "lora", "--seconds", "0"])
    assert [row["ms"] for row in rows] == ["left out: no time"] * 3
    assert capsys.readouterr().out.count("left out: no time") == 3


def test_gpu_benchmark_says_that_it_needs_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        gpu.main([])


def test_attention_benchmark_measures_kernels_and_names_those_that_refuse():
    rows = attention_kernels.main(["--small"])
    assert len(rows) == 18
    assert {row["kernel"] for row in rows if row["ms"] == "refused"} >= {"cudnn"}  # a CPU has none
    assert all(row["ms"] > 0 for row in rows if row["ms"] != "refused")


@pytest.mark.slow
def test_a_lora_is_trained_on_the_base_that_another_run_exported():
    base, lora = demo_lora.main(["--small", "--seeds", "0"])
    assert (base["run"], base["stop step"]) == ("demo_base", 20)
    assert (lora["run"], lora["stop step"]) == ("demo_lora", 12)
    assert float(base["validation loss at best"].split()[0]) < -5


@pytest.mark.slow
def test_parts_of_a_model_are_judged_apart():
    rows = parts.main(["experts", "--max_steps", "12"])
    assert [row["part"] for row in rows] == ["high", "low", "the mean of both"]
    for row in rows:
        assert row["done at"] is None
        assert 0 <= row["kept"] <= 12
        assert float(row["its gain"].removesuffix(" %")) <= 0
