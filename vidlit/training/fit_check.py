"""Does a checkpoint fit the model, and if not, what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vidlit.errors import UserError
from vidlit.models.adapters import LoRA

if TYPE_CHECKING:
    from vidlit.models.adapters import LoRAFile
    from vidlit.models.family import Family
    from vidlit.training.averaging import EMA

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
