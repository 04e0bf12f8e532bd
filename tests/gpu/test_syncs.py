"""What a step waits for, by CUDA's own account; ``tests/test_syncs.py`` checks the same without a GPU."""

import pytest
import torch

from tests.models import bases
from tests.models.hunyuan_bases import few_glyphs
from tests.test_syncs import OWN, Enough, words_of
from vidlit.__main__ import main
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.numbers import StepReading

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", [kind for kind in bases.EVERY if kind not in OWN])
def test_a_step_does_not_wait_for_the_gpu(kind, demo, tmp_path, monkeypatch):
    """CUDA's own account does not know of events: who waits for one is looked at here."""
    of_a_gpu = {"trainer.accelerator": "gpu", "trainer.devices": 1, "trainer.precision": "bf16-mixed"}
    words = words_of(kind, demo, tmp_path, **of_a_gpu)
    steps, made_in, read_in = [], {}, []
    begin, values = StepReading.__init__, StepReading._values.func

    def on_train_batch_start(self, batch, batch_idx):
        if self.device.type != "cuda":  # steps of the forecast's
            return
        steps.append(batch_idx)
        torch.cuda.set_sync_debug_mode("error" if len(steps) == 3 else "default")
        if len(steps) == 4:
            raise Enough

    def made(self, *given, **named):
        begin(self, *given, **named)
        made_in[self] = len(steps)

    def read(self):
        read_in.append((made_in.get(self), len(steps)))
        return values(self)

    monkeypatch.setattr(VideoDiffusionModule, "on_train_batch_start", on_train_batch_start)
    monkeypatch.setattr(StepReading, "__init__", made)
    monkeypatch.setattr(StepReading, "_values", property(read))
    try:
        with few_glyphs(), pytest.raises(Enough):  # any other wait is an error that names its line
            main([*words, "--debug"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert {(made, read) for made, read in read_in if read == 3} == {(2, 3)}
