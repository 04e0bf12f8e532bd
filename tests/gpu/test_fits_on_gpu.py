"""What users run, on a GPU: every family's configuration, every dtype, what is for a GPU alone."""

import csv
import json
import math

import pytest
import torch

from tests.models.hunyuan_bases import few_glyphs
from tests.test_families_fit import CASES
from tests.tiny_runs import tiny_words
from vidlit.__main__ import main

pytestmark = pytest.mark.gpu

LORA = {"model.adapter.rank": 4}
OPTIONS = {
    "float32": {"trainer.precision": "32-true"},
    "float16": {"trainer.precision": "16-mixed"},
    "bfloat16": {"trainer.precision": "bf16-mixed"},
    "bfloat16_weights": {"trainer.precision": "bf16-true", "samples.num_videos": 1, "samples.num_steps": 2},
    "compiled": {"model.memory.compile": True, "model.memory.gradient_checkpointing": True},
    "recomputed": {"model.memory.gradient_checkpointing": 0.5},
    "lora_bfloat16_compiled": {
        **LORA,
        "model.memory.base_dtype": "bfloat16",
        "model.memory.compile": True,
        "model.memory.gradient_checkpointing": True,
    },
    "lora_int8": {**LORA, "model.memory.base_dtype": "int8"},
    "lora_float8": {**LORA, "model.memory.base_dtype": "float8"},
    "lora_nf4": {**LORA, "model.memory.base_dtype": "nf4"},
    "lora_swapped": {**LORA, "model.memory.base_dtype": "bfloat16", "model.memory.swap_blocks": 4},
    "dora": {**LORA, "model.adapter.variant": "dora"},
    "tlora": {**LORA, "model.adapter.variant": "tlora"},
    "adamw_8bit_with_average": {
        "model.optimizer": "torchao.optim.AdamW8bit",
        "model.optimizer.lr": 0.002,
        "model.ema.decay": 0.9,
        "model.memory.gradient_checkpointing": True,
    },
    "sharded": {
        "trainer.strategy": "lightning.pytorch.strategies.ModelParallelStrategy",
        "trainer.strategy.data_parallel_size": 1,
        "trainer.strategy.tensor_parallel_size": 1,
    },
}
"""Of a fit on a GPU, beside those of the quickstart."""


@pytest.fixture(autouse=True)
def cheap_glyphs():
    with few_glyphs():
        yield


def column(run, name):
    with (run / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize(("name", "make", "size"), CASES)
def test_every_family_trains_samples_and_exports(name, make, size, demo, tmp_path):
    words = tiny_words(name, make(tmp_path / "base"), demo.dir / "clips", size, tmp_path)
    # Compiling takes longer than all the rest of a tiny fit; the next test has it.
    assert main(["fit", *words, "--trainer.accelerator=gpu", "--model.memory.compile=false"]) == 0
    (run,) = (tmp_path / "runs" / name).iterdir()
    assert json.loads((run / "summary.json").read_text())["stop_step"] == 2
    assert all(math.isfinite(loss) for loss in column(run, "train/loss"))
    assert list((run / "weights").rglob("*.safetensors"))
    assert len(list(run.glob("samples/step_*/*.mp4"))) == 1


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_fit_learns_in_every_dtype_and_goes_on(kind, quickstart, demo, latents, tmp_path):
    options = {"trainer.accelerator": "gpu", "trainer.max_steps": 24, "trainer.val_check_interval": 8}
    options |= {"model.memory.compile": False, **OPTIONS[kind]}
    words = [*quickstart(), *(f"--{name}={value}" for name, value in options.items())]
    assert main(words) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    losses = column(run, "train/loss")
    assert len(losses) == 24
    assert all(math.isfinite(loss) for loss in losses)
    # An untrained base learns fast; a fresh LoRA on random weights hardly at all.
    if "model.adapter.rank" not in options:
        assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    assert main([*words, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--trainer.max_steps=30"]) == 0
    assert len(column(run, "train/loss")) == 30


def test_the_first_check_is_the_cpus(quickstart, tmp_path):
    scores = []
    for number, device in enumerate(("cpu", "gpu")):
        assert (
            main(
                [
                    *quickstart(
                        trainer__max_steps=1,
                        trainer__precision="32-true",
                        trainer__accelerator=device,
                        model__memory__compile=False,
                    )
                ]
            )
            == 0
        )
        scores.append(column(tmp_path / "runs" / "quickstart" / str(number), "val/loss")[0])
    assert scores[1] == pytest.approx(scores[0], rel=1e-3)  # the same draws: what is left is the order of sums


def test_peak_memory_is_the_gpus(quickstart, tmp_path):
    words = quickstart(trainer__accelerator="gpu", trainer__max_steps=2, model__memory__compile=False)
    assert main(words) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert 0 < column(run, "perf/peak_memory_gb")[-1] <= torch.cuda.get_device_properties(0).total_memory / 1e9
    assert column(run, "perf/device_memory_gb")[-1] > 0
    assert column(run, "perf/mfu")[-1] > 0
