"""A LoRA merged into its base: a whole model, which needs no adapter to sample with or to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vidlit.models.adapters import ADAPTER_NAME, LoRAFile
from vidlit.models.base_folder import add_base_parts
from vidlit.models.family import Family
from vidlit.whole_files import make_readable

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights that can be added to, by their names in safetensors files."""


def merge_lora(
    family: Family, files: Mapping[str, LoRAFile], folder: Path, scale: float = 1.0, *, copy: bool = False
) -> None:
    """Write a base with LoRA in its weights, in the dtypes that the base's files have.

    Args:
        family: of the base.
        files: of the LoRA, by the name of the expert that each is for; experts without one stay the base's.
        folder: to write to; ``model_index.json`` comes last, so a folder that has it is whole.
        scale: what the adapters' updates are multiplied by; of a DoRA before they are brought to their lengths.
        copy: the base's other parts, or link them, which costs no space and needs the base to stay where it is.

    Raises:
        UserError: a file cannot be read, or is of another model.
    """
    for name, file in files.items():
        dtypes = stored_dtypes(family.base / name)
        kinds = Counter(dtypes.values())
        # Mixed ones are loaded in float32, which holds them all, and cast one by one.
        transformer: Any = family.load_transformer(next(iter(kinds)) if len(kinds) == 1 else torch.float32, name)
        file.apply(transformer, family)
        _merge(transformer, scale)
        for key, parameter in transformer.named_parameters():
            parameter.data = parameter.data.to(dtypes.get(key, parameter.dtype))
        transformer.save_pretrained(folder / name)
        make_readable((folder / name).iterdir())
    add_base_parts(family.base, folder, list(files), copy=copy)


def stored_dtypes(folder: Path) -> dict[str, torch.dtype]:
    """Dtype of each weight in the safetensors files of a folder, from their headers; float32 for any other kind."""
    from safetensors import safe_open

    dtypes: dict[str, torch.dtype] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = {key: file.get_slice(key).get_dtype() for key in file.keys()}
            dtypes |= {key: DTYPES.get(name, torch.float32) for key, name in names.items()}
    return dtypes


def _merge(transformer: Any, scale: float) -> None:
    """Put an adapter's update into the weights, in place: added in float32, then rounded once."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in transformer.modules():
        if isinstance(module, BaseTunerLayer):
            weights = module.get_base_layer()
            dtype = weights.weight.dtype
            module.float()
            module.scaling[ADAPTER_NAME] *= scale
            module.merge()
            weights.to(dtype)
    transformer.unload_lora()
