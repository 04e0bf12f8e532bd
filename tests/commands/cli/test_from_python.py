"""The commands from Python: words are arguments, what is written comes back as objects."""

from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

import vidlit
from vidlit.commands.cli.from_python import _words
from vidlit.data import Batching, Splitting
from vidlit.lightning_internals import callbacks_of
from vidlit.signals import OverfitStopping, SampleVideos


@pytest.fixture
def options(demo, latents, tmp_path):
    """Of a small quickstart whose runs lie in `tmp_path`."""
    return {
        "demo": None,
        "data__source": demo.dir / "clips",
        "data__store": latents,
        "data__encoding__num_workers": 1,
        "data__batches": {"size": 2},
        "model__base": demo.dir / "base",
        "run__dir": tmp_path / "runs",
        "run__report": False,
        "samples__num_videos": 0,
        "samples__num_audit": 0,
    }


class OwnLog(Callback):
    """Writes with the logger's own experiment, as callbacks of others do."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, *_):
        self.steps.append(trainer.global_step)
        trainer.logger.experiment.log_metrics({"own": float(trainer.global_step)}, trainer.global_step)


def test_a_fit_gives_the_run_and_what_was_trained(options, tmp_path, capsys):
    own = OwnLog()
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "csv")}}
    more = {"trainer": {"max_steps": 4, "val_check_interval": 2, "logger": logger}}
    result = vidlit.fit(["quickstart", more], callbacks=[own], **options)
    assert "fine-tunes" in capsys.readouterr().out
    assert own.steps == [1, 2, 3, 4]
    assert result.stopped_by == "max_steps"
    assert result.summary["stop_step"] == 4
    assert result.directory == tmp_path / "runs" / "quickstart" / "0"
    assert result.record.directory.weights.is_dir()
    assert result.reason
    assert len(result.record.curve("val/loss").steps) >= 2
    assert isinstance(result.module, vidlit.VideoDiffusionModule)
    assert len(result.datamodule.train_clips) > 0
    (written,) = (tmp_path / "csv").rglob("metrics.csv")
    assert "own" in written.read_text().splitlines()[0]

    config = result.directory / "config.yaml"
    again = vidlit.fit(["quickstart", more], quiet=True, **{**options, "trainer__max_steps": 1, "run__report": False})
    assert again.summary["stop_step"] == 1
    assert capsys.readouterr().out == ""

    made = vidlit.predict(
        config,
        ["A red disc: it moves", "A blue ring"],
        quiet=True,
        ckpt_path="last",
        output=tmp_path / "out",
        size="5x48x80",
        samples__num_steps=1,
    )
    assert [video.details["prompt"] for video in made] == ["A red disc: it moves", "A blue ring"]
    assert all(video.path.stat().st_size > 0 for video in made)
    assert capsys.readouterr().out == ""


def test_a_plan_is_an_object(options, capsys):
    plan = vidlit.plan("quickstart", quiet=True, trainer__max_steps=30, **options)
    assert plan.max_steps == 30
    assert plan.clips == 12
    assert capsys.readouterr().out == ""


def test_mistakes_are_exceptions_with_the_option_that_was_meant(options):
    with pytest.raises(vidlit.UserError, match=r"Did you mean --data\.source"):
        vidlit.fit("quickstart", data__sorce="x")
    with pytest.raises(vidlit.UserError, match=r"data.sorce: .* Did you mean data.source"):
        vidlit.fit(["quickstart", {"data": {"sorce": "x"}}])
    with pytest.raises(vidlit.UserError, match="Did you mean quickstart"):
        vidlit.plan("quickstrt")
    with pytest.raises(vidlit.UserError, match="no such folder"):
        vidlit.plan("quickstart", quiet=True, **{**options, "data__source": "nowhere"})
    with pytest.raises(vidlit.UserError, match="divergence"):
        vidlit.plan("quickstart", quiet=True, overfit_stopping__policy__divergence="maybe", **options)


def test_values_are_written_as_the_command_line_takes_them():
    overrides = {
        "data__source": Path("my clips"),
        "model__adapter": {"rank": 4, "alpha": 0.5},
        "demo": None,
        "refit": True,
        "data__buckets": ["5x48x80", "9x64x64"],
        "model__optimizer__init_args__lr": 1e-5,
    }
    _, _, *words = _words("fit", "quickstart", overrides)
    assert words == [
        "--data.source=my clips",
        "--model.adapter={alpha: 0.5, rank: 4}",
        "--demo=null",
        "--refit=true",
        "--data.buckets=[5x48x80, 9x64x64]",
        "--model.optimizer.init_args.lr=1.0e-05",
    ]


# -- classes in place of a config


@pytest.fixture
def parts(demo, latents):
    """Data and model as the small quickstart has them."""
    buckets = ["5x48x80", "9x64x64", "9x48x80", "17x64x64", "17x48x80"]
    base, batches, split = str(demo.dir / "base"), Batching(size=2), Splitting(val_fraction=0.5)
    data = vidlit.LatentDataModule(demo.dir / "clips", latents, base, buckets, fps=16, batches=batches, split=split)
    optimizer = partial(torch.optim.AdamW, lr=0.002, weight_decay=0.01, fused=True)
    return vidlit.VideoDiffusionModule(base, optimizer=optimizer, warmup_steps=20, fps=16), data


@pytest.mark.slow
def test_classes_train_in_bfloat16_as_the_command_does(parts, options, tmp_path):
    """Not as Lightning's own plugin has it, which draws noise levels in bfloat16, too."""
    trainer = {"max_steps": 2, "val_check_interval": 2, "accelerator": "cpu", "precision": "bf16-true"}
    samples = SampleVideos(num_videos=0, num_audit=0)
    result = vidlit.fit_model(*parts, callbacks=[samples], runs=tmp_path, **trainer)
    assert {parameter.dtype for parameter in result.module.transformer.parameters()} == {torch.bfloat16}
    assert result.record.directory.weights.is_dir()


def test_classes_train_as_the_config_does(parts, options, tmp_path, capsys):
    trainer = {"max_steps": 4, "val_check_interval": 2, "log_every_n_steps": 1, "accelerator": "cpu"}
    own, stopping = Callback(), OverfitStopping(policy={"diversity": "warn", "drift": "off"})
    samples = SampleVideos(num_videos=0, num_audit=0)
    result = vidlit.fit_model(*parts, callbacks=[own, samples, stopping], runs=tmp_path, name="classes", **trainer)
    assert "Trained all 4 steps" in capsys.readouterr().out
    assert result.directory == tmp_path / "classes" / "0"
    assert (result.directory / "report.html").is_file()
    assert result.record.directory.weights.is_dir()
    assert not result.record.directory.config.exists()

    words = {f"trainer__{name}": value for name, value in trainer.items()}
    other = vidlit.fit("quickstart", quiet=True, **{**options, **words})
    for name in ("train/loss", "val/loss", "val/log_ratio", "exposure/mean"):
        ours, theirs = result.record.curve(name), other.record.curve(name)
        assert ours.steps.tolist() == theirs.steps.tolist() != []
        assert ours.values.tolist() == theirs.values.tolist()
    kinds = [{type(each).__name__ for each in callbacks_of(each.module.trainer)} for each in (result, other)]
    assert kinds[0] - {"Callback"} == (kinds[1] - {"SaveRunConfig"}) | {"StepProgress"}  # the other one is quiet


def test_classes_that_do_not_go_together_are_refused(parts, demo, latents, tmp_path):
    model, _ = parts
    data = vidlit.LatentDataModule(demo.dir / "clips", latents, str(demo.dir / "base"), ["9x48x80"], fps=8)
    with pytest.raises(vidlit.UserError, match=r"do not go together: fps is 16 of the model, 8 of the data"):
        vidlit.fit_model(model, data, runs=tmp_path)
    assert list(tmp_path.iterdir()) == []
