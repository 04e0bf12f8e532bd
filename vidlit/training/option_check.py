"""Options of a model that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.diffusion.conditions import check_conditions
from vidlit.errors import UserError
from vidlit.lightning_internals import is_attached

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


def check_options(module: VideoDiffusionModule) -> None:
    """Refuse options of a model that contradict each other, or its base.

    Raises:
        UserError: they do.
    """
    if module.adapter is not None and module.layers is not None:
        raise UserError("model.adapter and model.layers exclude each other: a LoRA, or chosen layers of the model.")
    if module.preservation is not None:
        module.preservation.check(has_adapter=module.adapter is not None)
    if module.memory.lowers_base and module.adapter is None and module.layers is None:
        raise UserError(
            f"model.memory.base_dtype {module.memory.base_dtype} is for weights that are not trained, and here all "
            "are: set model.adapter or model.layers, or --trainer.precision bf16-true."
        )
    if module.ema is not None and module.is_schedule_free:
        raise UserError("a schedule-free optimizer averages by itself: leave model.ema out.")
    if module.is_schedule_free and len(module.parts.parts) > 1:
        raise UserError(
            "a schedule-free optimizer averages all weights at once, and parts of a model (experts, video and sound) "
            "are put back one by one: choose another optimizer, or train one part (model.expert, model.audio only)."
        )
    if not 0 <= module.caption_dropout < 1:
        raise UserError(f"model.caption_dropout is {module.caption_dropout}: it must be at least 0 and below 1.")
    check_conditions(module.conditions)
    if module.reads_references and not module.family.reference_pipeline:
        raise UserError(
            f"model.conditions gives every sample a reference, but {module.family.base} takes none: of the families "
            "here LTX-2 does."
        )
    if module.conditions and not module.family.takes_clean_frames:
        raise UserError(
            f"model.conditions gives some samples frames without noise, but {module.family.base} takes none: of the "
            "families here LTX-2, LTX-Video and Wan 2.2 TI2V-5B do. An image-to-video base is always given its first "
            "frame."
        )


def check_devices(module: VideoDiffusionModule) -> None:
    """Refuse options that a model's devices and their precision do not go with.

    Raises:
        UserError: they do not.
    """
    if is_attached(module) and module.trainer.precision == "16-true":
        raise UserError(
            "--trainer.precision 16-true would keep weights and gradients in float16, where small ones are lost and "
            "large ones are infinite: set bf16-true, or bf16-mixed, or on a GPU without bfloat16 16-mixed."
        )
    if module.adapter is not None and is_attached(module) and module.trainer.precision == "bf16-true":
        raise UserError(
            "--trainer.precision bf16-true would keep the adapter in bfloat16, where small updates are lost: set "
            "--trainer.precision bf16-mixed with --model.memory.base_dtype bfloat16, which needs no more memory."
        )
    if module.memory.offload_experts and is_attached(module) and module.trainer.world_size > 1:
        raise UserError(
            "model.memory.offload_experts is for one device: set it to false on several, or train one expert a run "
            "(--model.expert high, then low)."
        )
