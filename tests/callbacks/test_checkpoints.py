import csv
import json

import torch
from safetensors.torch import load_file

from vidlit.__main__ import main

SHAPE = "diffusion_pytorch_model.safetensors"


def log_ratios(run):
    with (run / "metrics.csv").open(newline="") as file:
        return {int(float(r["step"])): float(r["val/log_ratio"]) for r in csv.DictReader(file) if r["val/log_ratio"]}


def load(run, name):
    return torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)


def test_best_is_the_lowest_check_and_last_the_last(quickstart, tmp_path):
    assert main(quickstart()) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    ratios = log_ratios(run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    best = load(run, "best")
    assert best["global_step"] == min(ratios, key=ratios.get) > 0
    assert best["optimizer_states"]  # resumable
    assert all(name.startswith("transformer.") for name in best["state_dict"])


def test_last_is_the_last_check_whether_it_was_better_or_not(quickstart, tmp_path):
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    assert main([*words, "--model.optimizer.init_args.lr=1.0"]) == 0
    assert load(tmp_path / "runs" / "quickstart" / "0", "last")["global_step"] == 8


def test_where_nothing_is_gained_the_base_model_is_kept(quickstart, demo, tmp_path, capsys):
    """A learning rate that only destroys: step 0 is the best check, restored and exported."""
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    assert main([*words, "--model.optimizer.init_args.lr=1.0", "--trainer.gradient_clip_val=null"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["best_step"] == summary["kept_step"] == 0
    assert summary["restored"]
    assert load(run, "best")["global_step"] == 0
    exported, base = (
        load_file(run / "weights" / "transformer" / SHAPE),
        load_file(demo.dir / "base" / "transformer" / SHAPE),
    )
    for name, value in base.items():
        assert torch.equal(exported[name], value), name
    assert "The base model itself is kept (step 0)" in capsys.readouterr().out


def test_the_last_weights_can_be_kept_instead(quickstart, tmp_path):
    words = quickstart(model__warmup_steps=0, trainer__max_steps=8)
    rate = "--model.optimizer.init_args.lr=1.0"
    assert main([*words, rate, "--overfit_stopping.restore_best=false"]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["kept_step"] == summary["stop_step"] == 8
    assert not summary["restored"]
    exported, base = load_file(run / "weights" / "transformer" / SHAPE), load(run, "best")["state_dict"]
    assert all(not torch.equal(value, base[f"transformer.{name}"]) for name, value in exported.items())


def test_a_named_checkpoint_goes_on_in_its_own_directory(quickstart, tmp_path):
    assert main(quickstart(trainer__max_steps=4)) == 0
    checkpoint = tmp_path / "runs" / "quickstart" / "0" / "checkpoints" / "best.ckpt"
    start = torch.load(checkpoint, weights_only=True)["global_step"]
    assert start == 4
    assert main([*quickstart(trainer__max_steps=8), f"--ckpt_path={checkpoint}"]) == 0
    assert [path.name for path in (tmp_path / "runs" / "quickstart").iterdir()] == ["0"]
    assert list(log_ratios(tmp_path / "runs" / "quickstart" / "0")) == [0, 4, 8]
