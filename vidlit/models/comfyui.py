"""A LoRA under the layer names that ComfyUI knows.

ComfyUI keeps the layers of the authors' own code, where diffusers has renamed some and split others: there the query,
key and value of an attention are often one layer. It ignores what it does not recognise without an error, so a file is
written only where every adapted layer has its name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

PREFIX = "diffusion_model"

Layers = Mapping[str, tuple[str, ...]]
"""ComfyUI's name of a layer -> diffusers' names of the layers whose outputs it joins; ``{}`` is a block's number."""


def comfyui_lora(
    layers: Layers, state: Mapping[str, Tensor], scale: float, out_features: Callable[[str], int]
) -> dict[str, Tensor] | None:
    """Rename, join and scale the matrices of a LoRA.

    The update ``scale * B @ A`` of every layer stays what it is: the scale goes into ``B``, so that no alpha is needed;
    joined layers get their ``A`` stacked and their ``B`` in blocks.

    Args:
        layers: the family's names.
        state: ``<diffusers' layer>.lora_A.weight`` (R, in) and ``.lora_B.weight`` (out, R).
        scale: alpha / rank.
        out_features: of a layer, by diffusers' name.

    Returns:
        ``diffusion_model.<layer>.lora_A.weight`` and ``.lora_B.weight``; ``None`` if ComfyUI's name of a layer is not
        known.
    """
    adapted = {key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")}
    made: dict[str, Tensor] = {}
    for joined, names in layers.items():
        for block in sorted({block for name in names for block in _blocks(name, adapted)}):
            parts = [name.replace("{}", block) for name in names]
            down, up = _join([_matrices(state, part, part in adapted, scale, out_features) for part in parts])
            key = f"{PREFIX}.{joined.replace('{}', block)}"
            made |= {f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}
            adapted -= set(parts)
    return None if adapted or not made else made


def _blocks(name: str, adapted: set[str]) -> list[str]:
    """Numbers of the blocks whose layer of this name is adapted."""
    pattern = re.escape(name).replace(re.escape("{}"), r"(\d+)")
    return [match[1] for layer in adapted if (match := re.fullmatch(pattern, layer))]


def _matrices(
    state: Mapping[str, Tensor], layer: str, adapted: bool, scale: float, out_features: Callable[[str], int]
) -> tuple[Tensor | None, Tensor]:
    """``A`` and the scaled ``B`` of a layer; of one that is not adapted no ``A`` and a ``B`` of no rank."""
    if not adapted:
        return None, torch.zeros(out_features(layer), 0)
    return state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"] * scale


def _join(parts: Sequence[tuple[Tensor | None, Tensor]]) -> tuple[Tensor, Tensor]:
    """One ``A`` (sum of ranks, in) and ``B`` (sum of outputs, sum of ranks) that do what all parts do."""
    downs = [down for down, _ in parts if down is not None]
    ups = [up.to(downs[0]) for _, up in parts]
    return torch.cat(downs).contiguous(), torch.block_diag(*ups)  # type: ignore[no-untyped-call]  # torch has no types for it
