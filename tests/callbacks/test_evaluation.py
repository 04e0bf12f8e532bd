"""`vidlit validate` and `vidlit test`: what they say of a checkpoint, against numbers taken another way."""

import csv
import json
import math
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vidlit.__main__ import main
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Splitting
from vidlit.diffusion.batch import clip_key, collate
from vidlit.diffusion.loss import paired_losses
from vidlit.diffusion.noising import stratum_sigmas
from vidlit.diffusion.rectified_flow import RectifiedFlow, ResolutionShift
from vidlit.diffusion.streams import LATENTS
from vidlit.metrics.paired_loss import log_ratio, summarise
from vidlit.training.module import VideoDiffusionModule

SMALL = {
    "trainer__max_steps": 4,
    "data__split__test_fraction": 0.34,
    "data__split__val_fraction": 0.2,
    "data__buckets": "[9x48x48]",
}


def small_data(demo, latents):
    """As ``SMALL`` says."""
    base = str(demo.dir / "base")
    return LatentDataModule(
        demo.dir / "clips", latents, base, ["9x48x48"], fps=16, split=Splitting(val_fraction=0.2, test_fraction=0.34)
    )


@torch.no_grad()
def by_hand(data, state=None):
    module = VideoDiffusionModule(data.family.base, fps=16)
    module.configure_model()
    if state is not None:
        module.load_state_dict(state, strict=False)
    module.eval()
    dataset = data.dataset(data.test_clips)
    rows = range(len(data.test_clips))
    alone = [paired_losses(module, module.noising, collate([dataset[row]]), data.seed, 2) for row in rows]
    return torch.cat([losses[LATENTS] for losses in alone])


def test_the_test_compares_with_the_base_and_audits(quickstart, demo, latents, tmp_path, capsys):
    assert main(quickstart(**SMALL)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    checkpoint = run / "checkpoints" / "best.ckpt"
    capsys.readouterr()
    audit = {"samples__num_audit": 4, "samples__audit_steps": 2, "samples__metrics": "[fid]"}
    assert main([*quickstart("test", **SMALL, **audit), f"--ckpt_path={checkpoint}"]) == 0
    printed = capsys.readouterr().out

    folder = run / "test" / "step_000004"
    results = json.loads((folder / "results.json").read_text())
    data = small_data(demo, latents)
    base, now = by_hand(data), by_hand(data, torch.load(checkpoint, weights_only=True)["state_dict"])
    keys = torch.tensor([clip_key(clip.clip_id) for clip in data.test_clips])
    ratios = log_ratio(now, base, stratum_sigmas(RectifiedFlow(), keys, [1] * len(keys), 2))
    assert results["step"] == 4
    assert (results["clips"], results["videos"]) == (len(data.test_clips), 2)
    assert results["reference"] == pytest.approx(float(base.mean()), rel=1e-4)
    assert results["loss"] == pytest.approx(float(now.mean()), rel=1e-4)
    assert results["log_ratio"] == pytest.approx(float(ratios.mean()), abs=1e-4)
    assert f"{100 * math.expm1(results['log_ratio']):+.2f}" in printed
    assert results["copies"]["clips"] == 2  # as many again are of test clips
    assert math.isfinite(results["diversity"]["log_ratio"])
    assert (results["copies"]["step"], results["diversity"]["step"]) == (4, 4)
    assert all(json.loads(path.read_text())["step"] == 4 for path in folder.glob("audit_*.json"))
    assert results["quality"]["fid"] > 0
    train = {clip.clip_id for clip in data.train_clips}
    assert results["copies"]["nearest_clip"] in train
    for file in ("sample", "pair", "pair_picture"):
        assert (run / results["copies"][file]).is_file()
    assert len(list(folder.glob("audit_0*.mp4"))) == 4
    assert str(folder) in printed


@pytest.mark.slow
def test_the_test_measures_averaged_weights_where_there_are_such(quickstart, demo, latents, tmp_path):
    options = ["--model.ema.decay=0.9", "--overfit_stopping.restore=last"]
    assert main([*quickstart(**SMALL), *options]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    assert main([*quickstart("test", **SMALL), options[0], f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    results = json.loads((run / "test" / "step_000004" / "results.json").read_text())
    exported = load_file(run / "weights" / "transformer" / "diffusion_pytorch_model.safetensors")
    average = {f"transformer.{name}": value for name, value in exported.items()}
    trained = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    data = small_data(demo, latents)
    assert results["loss"] == pytest.approx(float(by_hand(data, average).mean()), rel=1e-5)
    assert results["loss"] != pytest.approx(float(by_hand(data, trained).mean()), rel=1e-5)


def test_the_base_alone_can_be_tested_and_leaves_nothing(quickstart, tmp_path, capsys):
    assert main(quickstart("test", **SMALL)) == 0
    assert "test/loss" in capsys.readouterr().out
    assert not list(tmp_path.glob("runs/**/results.json"))


@pytest.mark.parametrize("average", [[], pytest.param(["--model.ema.decay=0.9"], marks=pytest.mark.slow)])
def test_validate_shows_the_change_against_step_0(quickstart, tmp_path, capsys, average):
    """And scores what the checks of the run scored: the averaged weights where there are such."""
    assert main([*quickstart(trainer__max_steps=4), *average]) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    capsys.readouterr()
    assert main([*quickstart("validate"), *average, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"]) == 0
    printed = capsys.readouterr().out
    assert "under the base model" in " ".join(printed.split())
    for row, name in (("validation", "val_log_ratio"), ("training subset", "train_eval_log_ratio")):
        shown = re.search(rf"{row}[^\n]*?([+-]\d+\.\d+)[^\n]*%", printed)
        assert float(shown.group(1)) == pytest.approx(100 * math.expm1(summary[name]), abs=0.006), printed
    assert main(quickstart("validate")) == 0  # of the base model: nothing to compare with
    printed = capsys.readouterr().out
    assert printed.count("Scoring the base model itself: name a checkpoint with --ckpt_path FILE") == 1
    assert "under the base model" not in printed
    assert "change" not in printed


def test_validate_shows_every_recording_and_clip(quickstart, tmp_path, capsys):
    assert main(quickstart(trainer__max_steps=4)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    capsys.readouterr()
    output = tmp_path / "looks" / "last.json"
    last = run / "checkpoints" / "last.ckpt"
    assert main([*quickstart("validate", output=output), "--json", f"--ckpt_path={last}"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found == json.loads(output.read_text())
    assert (found["checkpoint"], found["step"]) == (str(last), 4)
    val, train_eval = found["scored"]
    assert (val["set"], train_eval["set"]) == ("val", "train_eval")
    for scored in (val, train_eval):
        changes = [row["log_ratio"] for row in scored["groups"]]
        assert changes == sorted(changes, reverse=True)
        assert len(changes) == scored["videos"] == 3
        assert sum(row["clips"] for row in scored["groups"]) == len(scored["each_clip"]) == scored["clips"]
        each = [row["log_ratio"] for row in scored["each_clip"]]
        assert sum(each) / len(each) == pytest.approx(scored["log_ratio"])
        for row in scored["groups"]:
            assert re.search(
                rf"{row['name']} .*{row['clips']} .*{100 * math.expm1(row['log_ratio']):+.1f} %", printed.err
            )
    assert all(row["exposures"] is None for row in (*val["each_clip"], *val["groups"]))
    with (run / "exposure.csv").open() as file:
        rows = list(csv.DictReader(file))
    seen = {row["clip_id"]: int(row["exposures"]) for row in rows}
    assert all(row["exposures"] == seen[row["name"]] for row in train_eval["each_clip"])
    for group in train_eval["groups"]:
        assert group["exposures"] == sum(int(row["exposures"]) for row in rows if row["video"] == group["name"])


@pytest.mark.slow
def test_a_base_whose_noise_depends_on_the_videos_size_is_scored_alike_by_every_command(
    quickstart, demo, latents, tmp_path, capsys
):
    base = shutil.copytree(demo.dir / "base", tmp_path / "base")
    scheduler = base / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "use_dynamic_shifting": True}))
    options = {
        "data__buckets": "[9x48x48, 17x48x80]",
        "seed_everything": 5,  # test clips of both sizes
        "data__split__val_fraction": 0.2,
        "data__split__test_fraction": 0.34,
        "model__base": base,
        "model__optimizer.init_args.lr": 1e-3,
        "trainer__max_steps": 4,
    }
    assert main(quickstart(**options)) == 0
    run = tmp_path / "runs" / "quickstart" / "0"
    summary = json.loads((run / "summary.json").read_text())
    last = {"ckpt_path": run / "checkpoints" / "last.ckpt"}
    capsys.readouterr()
    assert main(quickstart("validate", **options, **last)) == 0
    printed = capsys.readouterr().out
    for row, name in (("validation", "val_log_ratio"), ("training subset", "train_eval_log_ratio")):
        shown = re.search(rf"{row}[^\n]*?([+-]\d+\.\d+)[^\n]*%", printed)
        assert float(shown.group(1)) == pytest.approx(100 * math.expm1(summary[name]), abs=0.006), printed

    assert main(quickstart("test", **options, **last)) == 0
    results = json.loads((run / "test" / "step_000004" / "results.json").read_text())
    data = LatentDataModule(
        demo.dir / "clips",
        latents,
        str(base),
        ["9x48x48", "17x48x80"],
        fps=16,
        split=Splitting(test_fraction=0.34),
        seed=5,
    )
    state = torch.load(last["ckpt_path"], weights_only=True)["state_dict"]
    losses = [by_hand(data, weights) for weights in (state, None)]
    line = ResolutionShift(0.5, 1.15, 256, 4096)  # of diffusers' scheduler, where its config says no other
    sizes = [data.dataset(data.test_clips)[row].latents[0].numel() for row in range(results["clips"])]
    assert len(set(sizes)) > 1
    sigmas = torch.cat(
        [
            stratum_sigmas(RectifiedFlow(shift=line.at(size)), torch.tensor([clip_key(clip.clip_id)]), [size], 2)
            for clip, size in zip(data.test_clips, sizes, strict=True)
        ]
    )
    assert results["log_ratio"] == pytest.approx(float(log_ratio(*losses, sigmas).mean()), abs=1e-4)


def test_videos_not_clips_are_what_the_error_counts():
    reference = torch.ones(4, 2)
    losses = torch.tensor([0.5, 0.5, 0.8, 0.8]).log().exp()[:, None].expand(4, 2)
    summary = summarise(losses, reference, torch.full((4, 2), 0.5), ["a", "a", "b", "b"])
    by_video = torch.tensor([0.5, 0.8]).log()
    assert summary.videos == 2
    assert summary.standard_error == pytest.approx(float(by_video.std() / 2**0.5))
    assert summary.log_ratio == pytest.approx(float(by_video.mean()))
    assert summary.log_ratio_bins == pytest.approx([float(by_video.mean())] * 2)
    assert math.isnan(summarise(losses[:2], reference[:2], torch.full((2, 2), 0.5), ["a", "a"]).standard_error)
