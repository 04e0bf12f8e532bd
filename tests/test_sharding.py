"""FSDP2 on two real gloo processes: the same weights as one process, sharded checkpoints, whole weights exported."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.test_distributed import CAPPED, assert_decided_alike, fit
from vidlit.runs.checkpoint_files import AtomicCheckpointIO, is_sharded, stored_shapes
from vidlit.training.averaging import kept_weights

SHARDED = [
    "--trainer.devices=2",
    "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
    "--trainer.strategy.data_parallel_size=2",
    "--trainer.strategy.tensor_parallel_size=1",
]
OPTIONS = {"trainer__max_steps": 6, "trainer__val_check_interval": 3, "model__ema__decay": 0.9}


def column(run, name):
    with (run / "metrics.csv").open() as file:
        return torch.tensor([float(row[name]) for row in csv.DictReader(file) if row[name]])


def exported(run):
    return load_file(run / "weights/transformer/diffusion_pytorch_model.safetensors")


def read(path):
    return AtomicCheckpointIO().load_checkpoint(path, weights_only=True)


@pytest.mark.slow
def test_two_sharded_ranks_train_as_one_with_the_same_global_batch(quickstart, tmp_path):
    options = {**OPTIONS, **CAPPED}
    fit(quickstart(data__batches__size=4, run__name="one", **options), tmp_path)
    fit(
        [
            *quickstart(data__batches__size=2, run__name="two", samples__num_videos=1, samples__num_steps=2, **options),
            *SHARDED,
        ],
        tmp_path,
    )
    one, two = (tmp_path / "runs" / name / "0" for name in ("one", "two"))
    assert_decided_alike(one, two)
    for name in ("train/loss", "val/loss", "val/log_ratio", "train_eval/log_ratio"):
        torch.testing.assert_close(column(two, name), column(one, name), rtol=2e-5, atol=2e-5)
    # As in test_distributed: gradients are summed in another order, and Adam divides by their root mean square.
    weights = exported(one), exported(two)
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-4)

    # checkpoints are folders of shards; what they hold of the trained weights and the average is what one rank saves
    for name in ("best", "last"):
        path = two / "checkpoints" / f"{name}.ckpt"
        assert is_sharded(path)
        assert len(list(path.glob("*.distcp"))) == 2
        single, sharded = read(one / "checkpoints" / f"{name}.ckpt"), read(path)
        assert single["global_step"] == sharded["global_step"]
        assert single["state_dict"].keys() == sharded["state_dict"].keys()
        for key, value in single["state_dict"].items():
            torch.testing.assert_close(sharded["state_dict"][key], value, rtol=0, atol=1e-4)
    assert len([p for p in (two / "checkpoints").iterdir() if not p.is_symlink()]) == 2  # no old shards are left
    best = read(two / "checkpoints" / "best.ckpt")
    assert json.loads((two / "summary.json").read_text())["kept_step"] == best["global_step"]
    for name, value in weights[1].items():
        assert torch.equal(value, kept_weights(best["state_dict"])[f"transformer.{name}"]), name
    assert len(list((two / "samples").glob("*/*.mp4"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [[], ["--model.adapter.rank=4", "--model.memory.base_dtype=bfloat16", "--trainer.precision=bf16-mixed"]],
    ids=["full", "lora"],
)
def test_resumed_shards_go_on_bit_for_bit_and_hold_no_frozen_base(quickstart, tmp_path, options):
    def words(name, **changed):
        made = {**OPTIONS, "trainer__val_check_interval": 2, **changed}
        return [*quickstart(data__batches__size=2, run__name=name, **made), *SHARDED, *options]

    fit(words("whole"), tmp_path)
    fit(words("cut", trainer__max_steps=4), tmp_path)
    fit([*words("cut"), "--ckpt_path=last"], tmp_path)
    whole, cut = (tmp_path / "runs" / name / "0" for name in ("whole", "cut"))
    assert torch.equal(column(whole, "train/loss"), column(cut, "train/loss"))
    assert torch.equal(column(whole, "val/log_ratio"), column(cut, "val/log_ratio"))
    states = [read(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (whole, cut)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    shapes = stored_shapes(whole / "checkpoints" / "last.ckpt")
    if options:
        assert all("lora_" in name or name == "averaged.num_updates" for name in shapes)
        assert {value.dtype for name, value in states[0].items() if "lora_" in name} == {torch.float32}
        (stored,) = (cut / "weights").glob("pytorch_lora_weights.safetensors")
        assert load_file(stored)
    # one process validates what two have trained
    validate = quickstart("validate", data__batches__size=2)
    fit([*validate, *options, f"--ckpt_path={whole / 'checkpoints' / 'last.ckpt'}"], tmp_path)
