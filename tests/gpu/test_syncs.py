"""What a step waits for, by CUDA's own account; ``tests/test_syncs.py`` checks the same without a GPU."""

from collections import Counter

import pytest
import torch

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from tests.test_syncs import OWN, SIZES, Enough
from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.numbers import StepNumbers

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", [kind for kind in bases.EVERY if kind not in OWN])
def test_a_step_waits_for_the_gpu_once(kind, demo, tmp_path, monkeypatch):
    options = {
        "demo": "null",
        "data.source": demo.dir / "clips",
        "data.store": tmp_path / "latents",
        "data.encoding.num_workers": 1,
        "data.batches.size": 2,
        "data.buckets": f"[{SIZES.get(kind, '9x32x64')}]",
        "data.fps": 16,
        "data.split.val_fraction": 0,
        "model.base": bases.EVERY[kind](tmp_path / "base"),
        "model.caption_dropout": 0.3,
        "model.memory.compile": False,
        "run.dir": tmp_path / "runs",
        "run.report": False,
        "trainer.accelerator": "gpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-mixed",
        "trainer.max_steps": 8,
        "trainer.log_every_n_steps": 1,
        "trainer.gradient_clip_val": 1.0,
        "samples.num_videos": 0,
        "samples.num_audit": 0,
    }
    words = ["fit", "--config", "configs/quickstart.yaml", *(f"--{key}={value}" for key, value in options.items())]
    steps, waits = [], Counter()
    read = StepNumbers.read

    def on_train_batch_start(self, batch, batch_idx):
        if self.device.type != "cuda":  # steps of the forecast's
            return
        steps.append(batch_idx)
        torch.cuda.set_sync_debug_mode("error" if len(steps) == 3 else "default")
        if len(steps) == 4:
            raise Enough

    def counted(self, *given, **named):
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        waits[len(steps)] += 1
        try:
            return read(self, *given, **named)
        finally:
            torch.cuda.set_sync_debug_mode(mode)

    monkeypatch.setattr(VideoDiffusionModule, "on_train_batch_start", on_train_batch_start)
    monkeypatch.setattr(StepNumbers, "read", counted)
    try:
        with few_glyphs(), pytest.raises(Enough):  # any other wait is an error that names its line
            main([*words, "--debug"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert waits[3] == 1
