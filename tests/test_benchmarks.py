"""Benchmarks that take hours or a GPU, cut down to seconds: they run, and measure both sides."""

import pytest

from benchmarks import demo_lora, gpu, parts


@pytest.mark.parametrize(("model", "method"), [("ltx", "full"), ("wan", "lora")])
def test_gpu_benchmark_measures_both_sides(model, method):
    words = ["--small", "--steps", "1", "--warmup", "1", "--models", model, "--methods", method]
    plain, ours = gpu.main(words)
    assert [plain["side"], ours["side"]] == ["plain loop", "vidlit"]
    for row in (plain, ours):
        assert row["ms a step"] > 0
        assert row["tokens/s"] > 0
        assert 0 <= float(row["MFU"].removesuffix(" %")) < 100
        assert 0 <= float(row["waiting"].removesuffix(" %")) < 100


def test_gpu_benchmark_says_that_it_needs_one(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="--small"):
        gpu.main([])


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
