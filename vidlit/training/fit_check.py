"""Does a checkpoint fit the model, and if not, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vidlit.errors import UserError
from vidlit.lightning_internals import is_attached
from vidlit.models.adapters import LoRA
from vidlit.runs.checkpoint_files import is_sharded, stored_shapes
from vidlit.training.averaging import kept_weights

if TYPE_CHECKING:
    from vidlit.models.adapters import LoRAFile
    from vidlit.models.family import Family
    from vidlit.training.averaging import EMA
    from vidlit.training.module import VideoDiffusionModule

Shapes = Mapping[str, tuple[int, ...]]


def describe(
    family: Family, adapter: LoRA | Mapping[str, LoRAFile] | None, layers: str | None, ema: EMA | None
) -> dict[str, str]:
    """What decides which weights a checkpoint holds and what they mean, by the option that sets it."""
    variant, rank, alpha, targets = ("no adapter",) * 4 if adapter is None else ("from a file",) * 4
    if isinstance(adapter, LoRA):
        variant, rank, alpha = adapter.variant, str(adapter.rank), str(adapter.alpha)
        targets = adapter.targets or family.lora_targets
    return {
        "transformer": family.transformer_class,
        "base": family.transformer_fingerprint,
        "adapter.variant": variant,
        "adapter.rank": rank,
        "adapter.alpha": alpha,
        "adapter.targets": targets,
        "layers": layers or "all",
        "ema": str(ema.decay) if ema else "none",
    }


def check_fits(wanted: Shapes, stored: Shapes, here: Mapping[str, str], there: Mapping[str, str]) -> None:
    """Compare a checkpoint with the model that is to take it.

    Args:
        wanted: shapes of the model's trained weights, by name.
        stored: of the checkpoint's.
        here: :func:`describe` of the model.
        there: of the checkpoint's model; empty where it does not say.

    Raises:
        UserError: they do not fit; names options and weights that differ.
    """
    wrong = sorted(name for name, shape in wanted.items() if stored.get(name) != shape)
    extra = sorted(name for name in stored if name not in wanted)
    options = [
        f"model.{key}: {there[key]} there, {here[key]} here" for key in here if there.get(key, here[key]) != here[key]
    ]
    if not wrong and not extra:
        # An average's decay says how the weights came about; all else, such as a LoRA's alpha, what they mean.
        options = [option for option in options if not option.startswith("model.ema")]
        if options:
            raise UserError(
                f"The checkpoint is of another model: {'; '.join(options)}. Use the options it was made with."
            )
        return
    raise UserError(
        f"The checkpoint does not fit this model: {len(wrong)} of {len(wanted)} trained weights are missing or "
        f"of another shape ({', '.join(wrong[:3]) or 'none'}), {len(extra)} are unknown here "
        f"({', '.join(extra[:3]) or 'none'}). "
        + (f"Options differ: {'; '.join(options)}." if options else "Use the base and adapter it was trained with.")
    )


def check_checkpoint(module: VideoDiffusionModule, checkpoint: dict[str, Any]) -> None:
    """Say which weights do not fit before anything is loaded; what is only looked at gets the averages, in place.

    Args:
        module: that is to take it.
        checkpoint: as Lightning has read it.

    Raises:
        UserError: it does not fit, or is past the last step that is asked for.
    """
    fits = is_attached(module) and module.trainer.state.fn == "fit"
    step = int(checkpoint.get("global_step", 0))
    if fits and 0 <= module.trainer.max_steps < step:
        raise UserError(
            f"the checkpoint is at step {step}, beyond trainer.max_steps {module.trainer.max_steps}: raise that to "
            "go on."
        )
    if "state_dict" not in checkpoint:  # sharded: check_shards has looked
        return
    if not fits:
        checkpoint["state_dict"] = kept_weights(checkpoint["state_dict"])
    _check_module(module, {name: tuple(value.shape) for name, value in checkpoint["state_dict"].items()}, checkpoint)


def check_shards(module: VideoDiffusionModule) -> None:
    """The same of a checkpoint in shards: Lightning loads them before it asks, and says only that something is missing.

    Args:
        module: in a fit.

    Raises:
        UserError: it does not fit.
    """
    path = module.trainer.ckpt_path
    if path is not None and is_sharded(Path(path)):
        stored = torch.load(Path(path) / "meta.pt", map_location="cpu", weights_only=True)
        _check_module(module, stored_shapes(Path(path)), stored)


def _check_module(module: VideoDiffusionModule, stored: Shapes, checkpoint: Mapping[str, Any]) -> None:
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    here = describe(module.family, module.adapter, module.layers, module.ema)
    check_fits(wanted, stored, here, checkpoint.get("vidlit_model", {}))
