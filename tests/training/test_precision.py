"""Names of precisions are the Trainer's own."""

import pytest
from lightning.pytorch import Trainer

from vidlit.latents.quiet_lightning import BARE_TRAINER, quiet_lightning
from vidlit.training.precision import multiplies_low, precision_name


@pytest.mark.parametrize("given", [None, 32, "32", "64", "bf16", "32-true", "bf16-mixed"])
def test_a_precision_is_called_as_the_trainer_calls_it(given, tmp_path):
    with quiet_lightning():
        trainer = Trainer(accelerator="cpu", precision=given, default_root_dir=tmp_path, **BARE_TRAINER)
    assert precision_name(given) == trainer.precision
    assert multiplies_low(given) is ("bf16" in trainer.precision)


def test_float16_is_low():
    assert precision_name(16) == "16-mixed"
    assert multiplies_low(16)
