"""Options of a model that contradict each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.diffusion.conditions import check_conditions
from vidlit.errors import UserError
from vidlit.lightning_internals import datamodule_of, is_attached
from vidlit.models.adapters import LoRA
from vidlit.training.blocks.context_parallel import check_context, check_family

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


def check_options(module: VideoDiffusionModule) -> None:
    """Refuse options of a model that contradict each other, or its base.

    Raises:
        UserError: they do.
    """
    if module.adapter is not None and module.layers is not None:
        raise UserError("model.adapter and model.layers exclude each other: a LoRA, or chosen layers of the model.")
    check_family(module.family, module.context_parallel)
    if module.preservation is not None:
        module.preservation.check(has_adapter=module.adapter is not None)
    if module.memory.lowers_base and module.adapter is None and module.layers is None:
        raise UserError(
            f"model.memory.base_dtype {module.memory.base_dtype} is for weights that are not trained, and here all "
            "are: set model.adapter or model.layers, or --trainer.precision bf16-true."
        )
    if isinstance(module.adapter, LoRA) and module.adapter.variant == "dora" and module.memory.base_dtype == "nf4":
        raise UserError(
            "model.adapter.variant dora reads the lengths of the base's weights, which model.memory.base_dtype nf4 "
            "does not give: choose int8, or another variant."
        )
    if module.memory.swaps and module.adapter is None and module.layers is None:
        raise UserError(
            "model.memory.swap_blocks is for weights that are not trained, and here all are: set model.adapter or "
            "model.layers, or leave it at 0."
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
    if not is_attached(module):
        return
    trainer = module.trainer
    if module.memory.swaps and module.device_mesh is not None:
        raise UserError(
            "model.memory.swap_blocks cannot be used with sharded weights: leave it at 0, or choose a strategy without "
            "shards."
        )
    if trainer.precision == "16-true":
        raise UserError(
            "--trainer.precision 16-true would keep weights and gradients in float16, where small ones are lost and "
            "large ones are infinite: set bf16-true, or bf16-mixed, or on a GPU without bfloat16 16-mixed."
        )
    if module.adapter is not None and trainer.precision == "bf16-true":
        raise UserError(
            "--trainer.precision bf16-true would keep the adapter in bfloat16, where small updates are lost: set "
            "--trainer.precision bf16-mixed with --model.memory.base_dtype bfloat16, which needs no more memory."
        )
    if trainer.world_size > 1 or trainer.state.fn == "fit":  # one process looks at what several have trained
        buckets = getattr(datamodule_of(trainer), "buckets", [])
        check_context(module.family, module.context_parallel, trainer.world_size, buckets)
    if module.memory.offload_experts and trainer.world_size > 1:
        raise UserError(
            "model.memory.offload_experts is for one device: set it to false on several, or train one expert a run "
            "(--model.expert high, then low)."
        )
