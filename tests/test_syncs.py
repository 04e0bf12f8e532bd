"""A step does not wait for the device; where it is logged, or its optimizer has to be told of a bad gradient, once."""

from collections import Counter

import pytest
from lightning.pytorch import Trainer

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from tests.pretend_gpu import DEVICE, LATE, OnDevice, fits_there
from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule

READING = ("step/numbers.py", f"a copy of numbers to main memory, {LATE}")
WAIT = ("step/numbers.py", "the step that was begun last")
OWN = {
    # Before its blocks: is there an image, and, of each sample, which tokens of picture, glyphs and prompt are padding;
    # again in the backward pass of that.
    "hunyuan_video15": {"transformers/transformer_hunyuan_video15.py", "training/module.py"},
    "hunyuan_video15-i2v": {"transformers/transformer_hunyuan_video15.py", "training/module.py"},
}
"""Files where diffusers' transformers look at values, whatever they are given."""
SIZES = {
    "cogvideox-1.5-i2v": "9x32x48",
    "hunyuan_video15": "5x32x64",
    "hunyuan_video15-i2v": "5x32x64",
    "mochi": "7x32x64",
}


class Enough(BaseException):
    """Ends a run without saving anything."""


def waits_of_a_step(words, monkeypatch):
    """What the third step of a run waits for, its batch and its log included: of each line how often, and why."""
    seen = []
    with fits_there(monkeypatch) as record:

        def on_train_batch_start(self, batch, batch_idx):
            record.begun += 1
            seen.append(len(record.waits))
            if len(seen) == 4:
                raise Enough

        monkeypatch.setattr(VideoDiffusionModule, "on_train_batch_start", on_train_batch_start)
        with pytest.raises(Enough):
            main(words)
    return Counter(record.waits[seen[2] : seen[3]])


def words_of(kind, demo, tmp_path, **options):
    """A fit of a family with all that a step may have."""
    options = {
        "demo": "null",
        "data.source": demo.dir / "clips",
        "data.store": tmp_path / "latents",
        "data.encoding.num_workers": 1,
        "data.encoding.posterior": "sample",
        "data.batches.size": 2,
        "data.buckets": f"[{SIZES.get(kind, '9x32x64')}]",
        "data.fps": 16,
        "data.split.val_fraction": 0,
        "model.base": bases.EVERY[kind](tmp_path / "base"),
        "model.caption_dropout": 0.3,
        "model.memory.compile": False,
        "run.dir": tmp_path / "runs",
        "run.report": False,
        "trainer.max_steps": 8,
        "trainer.gradient_clip_val": 1.0,
        "samples.num_videos": 0,
        "samples.num_audit": 0,
        **options,
    }
    return ["fit", "--config", "configs/quickstart.yaml", *(f"--{key}={value}" for key, value in options.items())]


@pytest.mark.parametrize(
    ("kind", "log_every", "fused"),
    [
        ("ltx_video", 50, True),
        ("ltx_video", 50, False),
        ("ltx_video", 1, True),
        *(pytest.param(kind, 50, True, marks=pytest.mark.slow) for kind in bases.EVERY if kind != "ltx_video"),
    ],
)
def test_a_step_waits_for_the_device_where_it_is_logged(kind, log_every, fused, demo, tmp_path, monkeypatch):
    options = {"trainer.log_every_n_steps": log_every, "model.optimizer.fused": fused}
    with few_glyphs():
        waits = waits_of_a_step(words_of(kind, demo, tmp_path, **options), monkeypatch)
    found = Counter()
    for (line, what), count in waits.items():
        found[line.partition(":")[0], what] += count
    known = {(file, what): count for (file, what), count in found.items() if file in OWN.get(kind, ())}
    assert bool(known) == (kind in OWN)
    expected = {READING: 1} if fused and log_every > 1 else {READING: 1, WAIT: 1}
    assert found - Counter(known) == expected, "\n".join(f"{line}: {what} ({n})" for (line, what), n in waits.items())


class Teardown:
    """What becomes of the weights and moments of a run that is over."""

    def __init__(self, monkeypatch, record):
        self.record, self.copies, self.alive = record, None, []
        teardown = Trainer._teardown

        def watched(trainer):
            before = len(record.waits)
            states = trainer.optimizers[0].state.values() if trainer.optimizers else ()
            self.alive += [name for state in states for name, value in state.items() if isinstance(value, OnDevice)]
            teardown(trainer)
            self.copies = record.waits[before:]

        monkeypatch.setattr(Trainer, "_teardown", watched)


@pytest.mark.parametrize("end", ["max_steps", "a stop", "Ctrl-C"])
def test_the_end_of_a_fit_copies_no_weights_and_no_moments(end, quickstart, tmp_path, monkeypatch):
    """Lightning's teardown would, and move the model away from where it is exported and sampled with."""
    words = quickstart(trainer__max_steps=3, trainer__val_check_interval=2, model__optimizer__fused=False)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 1 and end == "a stop":
            self.trainer.should_stop = True
        if batch_idx == 1 and end == "Ctrl-C":
            raise KeyboardInterrupt

    exported, export = [], VideoDiffusionModule.export
    monkeypatch.setattr(
        VideoDiffusionModule, "export", lambda self, to: exported.append(self.device) or export(self, to)
    )
    monkeypatch.setattr(VideoDiffusionModule, "on_train_batch_end", on_train_batch_end)
    with fits_there(monkeypatch) as record:
        ended = Teardown(monkeypatch, record)
        assert main(words) == (130 if end == "Ctrl-C" else 0)
    assert record.waits
    assert {what for _, what in ended.copies} <= {"a copy of a number to main memory"}  # what was logged
    assert ended.alive == []
    assert exported == ([] if end == "Ctrl-C" else [DEVICE])
    run = tmp_path / "runs" / "quickstart" / "0"
    assert (run / "weights" / "model_index.json").is_file() == (end != "Ctrl-C")
