import pytest
import torch

from vidlit.__main__ import main
from vidlit.training.memory_advice import MemoryUse
from vidlit.training.module import VideoDiffusionModule

GB = 1e9


def use(**changed):
    numbers = {
        "frozen": 0,
        "frozen_bytes": 0.0,
        "trained_bytes": 8 * GB,
        "gradients": 8 * GB,
        "moments": 16 * GB,
        "averages": 0.0,
        "activations": 40 * GB,
        "num_blocks": 20,
        "batch_size": 4,
        "precision": "32-true",
        "adapter": False,
        "checkpointing": False,
        "world_size": 1,
    }
    return MemoryUse(**{**numbers, **changed})


def test_a_full_fine_tune_is_told_what_each_option_would_save():
    savings = {option.split()[0]: saved / GB for option, saved in use().savings().items()}
    assert savings == pytest.approx(
        {
            "--model.memory.gradient_checkpointing": 40 * (1 - 1 / 20 - 1 / 10),
            "--model.adapter.rank": 24,
            "--trainer.precision": 20,
            "--data.batches.size": 20,
            "--model.optimizer": 12,
        }
    )
    assert list(savings.values()) == sorted(savings.values(), reverse=True)


def test_what_is_in_use_already_is_not_offered():
    frozen = {"frozen": int(4 * GB), "frozen_bytes": 16 * GB, "trained_bytes": 0.1 * GB, "gradients": 0.1 * GB}
    lora = use(**frozen, moments=0.2 * GB, adapter=True, checkpointing=True, precision="bf16-mixed", batch_size=1)
    assert {option: saved / GB for option, saved in lora.savings().items()} == {
        "--model.memory.base_dtype int8": 12.0,
        "--model.memory.base_dtype bfloat16": 8.0,
    }
    sharded = [option for option in use(world_size=8).savings() if "ModelParallelStrategy" in option]
    assert sharded
    assert use(world_size=8).savings()[sharded[0]] == pytest.approx(32 * GB * 7 / 8)


def test_out_of_memory_ends_in_one_line_with_advice(quickstart, monkeypatch, capsys):
    step = VideoDiffusionModule.training_step

    def training_step(self, batch, batch_idx):
        if batch_idx == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(VideoDiffusionModule, "training_step", training_step)
    assert main(quickstart()) == 2
    error = capsys.readouterr().err
    assert "vidlit: error: out of memory at step 2. It held weights 5.0 MB, gradients 5.0 MB" in error
    assert "the optimizer's state 10.0 MB" in error
    assert "--model.memory.gradient_checkpointing true (about" in error
    assert "Traceback" not in error
