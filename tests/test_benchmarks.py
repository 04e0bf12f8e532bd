"""Benchmarks that take hours or a GPU, cut down to seconds: they run, and measure both sides."""

import json

import pytest

from benchmarks import attention_kernels, demo_lora, frozen_bits, gpu, memory, parts


@pytest.mark.parametrize(
    ("model", "method", "sides"),
    [
        ("ltx", "full", ["vidlit", "plain loop, tuned", "plain loop", "vidlit, 4 batches a step"]),
        pytest.param("wan", "lora", ["vidlit", "plain loop, tuned", "plain loop"], marks=pytest.mark.slow),
        pytest.param("wan5b", "lora", ["vidlit", "plain loop, tuned", "plain loop"], marks=pytest.mark.slow),
        pytest.param("ltx2", "lora", ["vidlit", "plain loop, tuned", "plain loop"], marks=pytest.mark.slow),
    ],
)
def test_gpu_benchmark_measures_all_sides(model, method, sides, tmp_path):
    words = ["--small", "--steps", "1", "--warmup", "1", "--models", model, "--methods", method, "--recompute", "0.5"]
    rows = gpu.main([*words, "--json", str(tmp_path / "rows.json")])
    assert [row["side"] for row in rows] == sides
    for row in rows:
        assert row["ms"] > 0
        assert row["allocated GB"] > 0
        assert row.get("recomputed") == (None if row["side"] == "plain loop" else 0.5)
        assert ("forecast GB" in row) == ("recomputed" in row)
        assert 0 <= float(row["MFU"].removesuffix(" %")) < 100
    assert json.loads((tmp_path / "rows.json").read_text()) == rows


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:model.memory.float8_matmuls")  # tiny layers
def test_gpu_benchmark_measures_products_in_float8_where_it_is_asked_to():
    words = ["--small", "--steps", "1", "--warmup", "1", "--models", "wan", "--methods", "lora"]
    plain, float8 = gpu.main([*words, "--recompute", "0.5", "--rows", "vidlit", "float8"])
    assert (plain["side"], float8["side"]) == ("vidlit", "vidlit, float8 products")
    assert plain["ms"] > 0
    assert float8["ms"] > 0


def test_gpu_benchmark_measures_what_is_chosen_for_smaller_cards():
    words = ["--small", "--steps", "1", "--warmup", "1", "--models", "wan", "--methods", "lora", "--rows", "fit"]
    fits, too_small = gpu.main([*words, "--cards", "24", "48", "1"])
    assert fits["side"] == "vidlit, fit to 24 and 48 GB"
    assert fits["settings"] == "--model.memory.gradient_checkpointing false"
    assert fits["ms"] > 0
    assert fits["forecast GB"] > 0
    assert too_small["side"] == "vidlit, fit to 1 GB"
    assert too_small["ms"].startswith("does not fit: needs ")
    assert "gradient_checkpointing true" in too_small["settings"]


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


@pytest.mark.slow
def test_fewer_bits_of_a_base_change_an_adapters_gradients_more():
    pytest.importorskip("torchao")
    rows = {row["base_dtype"]: row for row in frozen_bits.main()}
    assert rows["bfloat16"]["off"] < rows["int8"]["off"] < rows["float8"]["off"] < rows["nf4"]["off"] < 0.2
    for dtype, size in {"bfloat16": 2, "int8": 1, "float8": 1, "nf4": 0.5}.items():
        assert rows[dtype]["bytes"] == pytest.approx(size, rel=0.1)


def test_heads_of_configs_say_the_forecast_of_all_bases_that_they_name():
    text = (memory.ROOT / "configs" / "cogvideox_lora.yaml").read_text()
    assert memory.named_beside(text) == ["zai-org/CogVideoX-2b"]
    phases = {"encode captions": 9.7, "encode clips": 7.4, "train": 22.0, "checks": 13.6, "audits": 33.2}
    row = {"clip": "49x480x720", **phases, "others": {"zai-org/CogVideoX-2b": 17.1}}
    head = memory.with_figures(text, row).partition("seed_everything")[0]
    assert "about 34 GB to train and audit" in head
    assert "zai-org/CogVideoX-2b (about 18 GB)" in head
