import io
import json
import math
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.models.bases import ltx_video
from vidlit.__main__ import main
from vidlit.commands.cli.parse_only import ParseOnly
from vidlit.commands.plan import plan_of
from vidlit.commands.planning.plan_words import print_plan
from vidlit.data.batching import Batching
from vidlit.data.datamodule import LatentDataModule
from vidlit.data.split import Fold, Splitting
from vidlit.errors import UserError
from vidlit.forecast import run_plan
from vidlit.forecast.run_plan import make_plan
from vidlit.latents.encoding import Encoding
from vidlit.models.families.ltx_video import LTXVideo
from vidlit.video.frames import ClipRequest, read_clip
from vidlit.video.mp4 import write_mp4
from vidlit.video.sound import Sound


@pytest.fixture
def data(demo, tmp_path):
    return LatentDataModule(
        demo.dir / "clips",
        tmp_path / "store",
        str(demo.dir / "base"),
        ["9x64x64", "17x48x80"],
        fps=16,
        split=Splitting(val_fraction=0.34),
    )


def test_plan_foretells_what_the_sampler_does(data):
    plan = make_plan(data, max_steps=30, num_replicas=1, accumulate=2, learning_rate=1e-4)
    assert plan.clips == 12
    assert plan.videos == 6
    assert plan.masked == 0
    assert plan.split["train"] == {"clips": 8, "videos": 4}
    assert plan.split["val"] == {"clips": 4, "videos": 2}
    assert sum(row.clips for row in plan.buckets) == 12
    assert sum(row.train for row in plan.buckets) == 8
    assert {row.bucket: row.tokens for row in plan.buckets} == {"9x64x64": 48, "17x48x80": 75}
    counts = data.sampler(1, 0).exposures(60)
    assert plan.exposures["mean"] == counts.sum() / 4 == 30 * 2 / 4
    assert plan.batch_size == 2
    assert plan.conservative_max_steps == 10 * 4 // 2
    assert plan.moderate_max_steps == 50 * 4 // 2
    assert plan.band == "moderate"
    # 4 held-out clips and 4 of the training subset, at 2 noise levels each
    share = (4 + 4) * 2 / (3 * 2)
    clips = {"held_out_clips": 4, "train_eval_clips": 4}
    # 16 / (3 * 2 * 0.3) = 8.9: checks at 9, 18, 27 and 30
    expected = {"count": 4, "first_interval": 9, "last_interval": 9, **clips, "share": pytest.approx(share * 4 / 30)}
    assert plan.checks == expected
    told = make_plan(data, max_steps=30, num_replicas=1, accumulate=2, learning_rate=1e-4, check_interval=10)
    assert told.checks == {"count": 3, "first_interval": 10, "last_interval": 10, **clips, "share": share / 10}
    long = make_plan(data, max_steps=3000, num_replicas=1, accumulate=2, learning_rate=1e-4).checks
    assert (long["first_interval"], long["last_interval"]) == (9, 144)  # doubled at 288, 576, 1152 and 2304
    assert long["count"] == 32 + 16 + 16 + 16 + 5
    assert long["share"] == pytest.approx(share * long["count"] / 3000)
    assert plan.encode["clips"] == 12
    assert plan.encode["captions"] == 6
    elements = sum(math.prod(data.family.latent_shape(*clip.bucket)) for clip in data.plan.clips)
    assert plan.encode["gigabytes"] == 2 * elements / 1e9
    assert plan.encode["decode_seconds"] > 0


def test_plan_counts_further_streams_and_the_deviation_that_latents_are_drawn_with(demo, tmp_path, monkeypatch):
    base = ltx_video(tmp_path / "base")
    sizes, shapes_of = [], LTXVideo.stream_shapes
    for posterior, further in (("mode", {}), ("sample", {}), ("sample", {"sound": (16, 25)})):
        monkeypatch.setattr(LTXVideo, "stream_shapes", lambda *given, more=further: shapes_of(*given) | more)
        data = LatentDataModule(
            demo.dir / "clips",
            tmp_path / "store",
            str(base),
            ["9x64x64", "17x48x80"],
            fps=16,
            encoding=Encoding(posterior=posterior),
        )
        plan = make_plan(data, max_steps=10, num_replicas=1, accumulate=1, learning_rate=1e-4)
        sizes.append(plan.encode["gigabytes"])
    assert sizes[1] == 2 * sizes[0] > 0
    assert sizes[2] == pytest.approx(sizes[1] + plan.encode["clips"] * 2 * 16 * 25 / 1e9)


def test_plan_proposes_to_merge_a_bucket_that_is_too_small(demo, tmp_path):
    data = LatentDataModule(
        demo.dir / "clips",
        tmp_path / "store",
        str(demo.dir / "base"),
        ["5x48x64", "9x48x64", "9x64x64", "17x48x80"],
        fps=16,
        split=Splitting(val_fraction=0.34),
        batches=Batching(5),
    )
    plan = make_plan(data, max_steps=10, num_replicas=1, accumulate=1, learning_rate=1e-4)
    short = [row for row in plan.buckets if row.repeats_per_batch]
    assert short
    for row in short:
        assert row.repeats_per_batch == 5 - row.train


def test_the_command_prints_a_table_or_json(quickstart, capsys):
    assert main(quickstart("plan")) == 0
    table = capsys.readouterr().out
    assert "17x48x80" in table
    assert "split by recording" in table
    assert main([*quickstart("plan"), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["clips"] == 12
    assert plan["max_steps"] == 12
    # six recordings, three of them for validation: it names them, and what makes more of so few
    groups = plan["validation_groups"]
    assert len(groups) == plan["split"]["val"]["videos"] == 3
    assert f"for validation: {', '.join(groups)}\n" in table
    assert set(plan["small_set"]) == {"kfold", "refit"}
    for name, command in plan["small_set"].items():
        assert f"    {command}\n" in table
        program, subcommand, *words = shlex.split(command)
        assert (program, subcommand) == ("vidlit", {"kfold": "kfold", "refit": "fit"}[name])
        if name == "refit":
            config = ParseOnly(["fit", *(word.replace("--refit", "--refit=true") for word in words)]).config.fit
            assert (config.refit, config.trainer.max_steps) == (True, 12)


def test_a_large_set_and_one_without_validation_need_no_more_than_a_fit(data):
    def kinds(recordings, **options):
        videos = [replace(data.plan.clips[0].source, video=f"{n}.mp4", group=f"{n}.mp4") for n in range(recordings)]
        clips = [replace(data.plan.clips[0], source=video) for video in videos]
        val = [] if options.get("val_fraction") == 0 else clips[: recordings // 3]
        sides = SimpleNamespace(train=clips[len(val) :], val=val)
        return run_plan._small_set(SimpleNamespace(split=sides, splitting=Splitting(**options)))

    assert kinds(20) == ["kfold", "refit"]
    assert kinds(21) == kinds(50) == ["refit"]
    assert kinds(51) == kinds(6, val_fraction=0) == kinds(6, fold=Fold(0, 3)) == []


def test_many_validation_groups_are_cut_short(data):
    plan = make_plan(data, max_steps=10, num_replicas=1, accumulate=1, learning_rate=1e-4)
    shown = io.StringIO()
    print_plan(replace(plan, validation_groups=[f"[g]{n}" for n in range(30)]), Console(file=shown, width=100))
    assert "for validation: [g]0, [g]1," in shown.getvalue()
    assert "[g]7, ... 22 more (--json lists all)" in shown.getvalue()


def test_clips_without_sound_are_counted_where_a_model_makes_some(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(LTXVideo, "sample_rate", 16_000)
    folder = tmp_path / "clips"
    shutil.copytree(demo.dir / "clips", folder)
    first = min(folder.glob("*.mp4"))
    frames = read_clip(ClipRequest(first, 0.0, 9, 16.0, 64, 64))
    write_mp4(first, frames, 16.0, Sound(np.full((2, 17_000), 0.1, np.float32), 16_000))
    split = Splitting(val_fraction=0.34)
    data = LatentDataModule(folder, tmp_path / "store", str(demo.dir / "base"), ["9x64x64"], fps=16, split=split)
    plan = make_plan(data, max_steps=10, num_replicas=1, accumulate=1, learning_rate=1e-4)
    assert plan.silent == [clip.clip_id for clip in data.plan.clips if clip.source.video != first.name]
    assert 0 < len(plan.silent) < plan.clips
    shown = io.StringIO()
    print_plan(plan, Console(file=shown, width=100))
    assert f"{len(plan.silent)} of {plan.clips} clips have no sound, and no part in learning it:" in shown.getvalue()
    assert plan.encode["decode_seconds"] > 0
    silent = LatentDataModule(demo.dir / "clips", tmp_path / "silent", str(demo.dir / "base"), ["9x64x64"], fps=16)
    with pytest.raises(UserError, match=r"no clip of .* has sound, for which model\.audio asks"):
        _ = silent.plan


def test_long_lists_are_cut_short(data):
    plan = make_plan(data, max_steps=10, num_replicas=1, accumulate=1, learning_rate=1e-4)
    pairs = [{"first": "a.mp4", "second": f"{n}.mp4", "distance": 0.0, "group": "a.mp4"} for n in range(1500)]
    plan = replace(plan, crossing=[f"[red]{n}.mp4@0.000-1.125" for n in range(40)], near_duplicates=pairs)
    shown = io.StringIO()
    print_plan(plan, Console(file=shown, width=100))
    lines = shown.getvalue().splitlines()
    place = lines.index("40 clips probably cross a cut; data.cutting.mode scenes would cut there:")
    assert lines[place + 1] == "  [red]0.mp4@0.000-1.125"
    assert lines[place + 9] == "  ... 32 more (--json lists all)"
    assert "1500 near-duplicates, treated as one recording:" in lines
    assert len(lines) < 50


def test_a_demo_is_written_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--config", "quickstart", "--demo.num_videos=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["videos"] == 3


@pytest.mark.parametrize(
    ("words", "options", "lr"),
    [
        ([], {}, None),
        (["--model.optimizer.lr=3"], {}, 3.0),
        (["--model.optimizer=torch.optim.SGD"], {}, None),
        (["--trainer={max_steps: 7, devices: 2, limit_train_batches: 3}"], {"max_steps": 7, "num_replicas": 2}, None),
        (["--trainer.devices=[0, 1, 2]", "--trainer.num_nodes", "2"], {"num_replicas": 6}, None),
        (["--trainer.devices=auto"], {"num_replicas": max(1, torch.cuda.device_count())}, None),
        (["--trainer.val_check_interval=6", "--trainer.accumulate_grad_batches=2"], {"check_interval": 3}, None),
        (["--trainer.val_check_interval=0.5"], {"check_interval": None}, None),
        (["--model={noise: {num_strata: 3}}", "--seed_everything=5", "--data.fps=8"], {"num_strata": 3}, None),
    ],
)
def test_a_plan_reads_what_a_fit_reads(words, options, lr, quickstart, monkeypatch):
    """Its own short parser must say the same as LightningCLI's."""
    asked = {}
    monkeypatch.setattr(run_plan, "make_plan", lambda data, **given: asked.update(given, data=data))
    plan_of([*quickstart("plan"), *words])
    fit = ParseOnly([*quickstart("fit"), *words]).config.fit
    expected = {"max_steps": 12, "num_replicas": 1, "accumulate": 1, "num_strata": 2, "check_interval": 4} | options
    expected["accumulate"] = fit.trainer.accumulate_grad_batches
    data = asked.pop("data")
    assert asked.pop("learning_rate") == (lr or fit.model.optimizer.init_args.lr)
    assert asked == expected
    assert (expected["max_steps"], expected["num_strata"]) == (fit.trainer.max_steps, fit.model.noise.num_strata)
    assert (data.seed, data.source) == (int(fit.seed_everything), fit.data.source)
    assert data.family.fps == (fit.data.fps or data.family.default_fps)
    for name, value in (("cutting", data.cutting), ("split", data.splitting), ("batches", data.batching)):
        assert vars(fit.data[name]) == vars(value)


def test_no_lightning_is_loaded(quickstart):
    """It would take longer than planning."""
    script = f"import sys; from vidlit.__main__ import main; main({quickstart('plan')!r}); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert {"torch", "av"} <= loaded
    assert not {"lightning", "diffusers", "transformers", "scipy", "wandb"} & loaded


def test_the_real_clips(quickstart, shared_videos, tmp_path, capsys):
    assert main([*quickstart("plan", data__source=shared_videos / "content", data__store=tmp_path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["videos"] == 8
    assert plan["quarantined"] == plan["dropped"] == []
    assert {"finetrainers__hiker.mp4", "finetrainers__hiker_tiny.mp4"} in [
        {pair["first"], pair["second"]} for pair in plan["near_duplicates"]
    ]
