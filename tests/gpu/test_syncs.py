"""What a step waits for, by CUDA's own account; ``tests/test_syncs.py`` checks the same without a GPU."""

import re
import warnings
from collections import Counter

import pytest
import torch

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from tests.test_syncs import OWN, SIZES, Enough
from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule

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
    steps = []

    def on_train_batch_start(self, batch, batch_idx):
        steps.append(batch_idx)
        torch.cuda.set_sync_debug_mode("warn" if len(steps) == 3 else "default")
        if len(steps) == 4:
            raise Enough

    monkeypatch.setattr(VideoDiffusionModule, "on_train_batch_start", on_train_batch_start)
    try:
        with few_glyphs(), warnings.catch_warnings(record=True, action="always") as caught, pytest.raises(Enough):
            main(words)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    told = [each for each in caught if "synchroniz" in str(each.message)]
    where = Counter(re.sub(r".*/(\w+/\w+\.py)", r"\1", each.filename) for each in told)
    assert where == {"step/numbers.py": 1}, [f"{each.filename}:{each.lineno}" for each in told]
