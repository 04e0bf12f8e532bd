"""What the forecast makes of a module whose ranks share its weights."""

import torch

from tests.models.bases import wan
from vidlit.forecast.step_memory import StepSetting, step_memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.video.buckets import Bucket


def test_a_module_that_will_be_sharded_is_measured_whole(tmp_path):
    module = VideoDiffusionModule(str(wan(tmp_path / "base")), optimizer=torch.optim.SGD)
    module._device_mesh = {"data_parallel": None}  # as ModelParallelStrategy sets it, of GPUs
    steps = step_memory(module, StepSetting(Bucket(9, 32, 64), on_gpu=False))
    assert steps.peaks["batch 0 optimizer"].total > 0
    assert module.device_mesh == {"data_parallel": None}
