"""Parts of a base made from their configs alone, to look at what they would take: nothing is read of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from vidlit.models.base_folder import errors_of_base, read_config


@contextmanager
def without_weights(prepare: Callable[[nn.Module], Any] = lambda model: None) -> Iterator[None]:
    """While it is open, ``from_pretrained`` of diffusers' models reads configs alone, and leaves models where they are.

    Meant for fake tensors, which take no memory. They cannot be moved, so that modules' ``to`` does nothing.

    Args:
        prepare: changes each model in place before its dtype is set.
    """
    from diffusers import ModelMixin

    def from_pretrained(cls: Any, folder: Path, /, torch_dtype: torch.dtype = torch.float32, **_: Any) -> Any:
        # Without modes and first values, which take seconds for a hundred blocks.
        no_values = mock.patch.object(nn.Linear, "reset_parameters")
        with _disable_current_modes(), torch.device("meta"), no_values:
            model = cls.from_config(cls.load_config(folder))
        prepare(model)
        exact = getattr(model, "_keep_in_fp32_modules", None) or ()
        for path, module in model.named_modules():
            kept = any(part in exact for part in path.split("."))
            for name, parameter in module.named_parameters(recurse=False):
                dtype = parameter.dtype if kept or name in exact else torch_dtype
                made = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)
                module.register_parameter(name, made)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty_like(buffer, device="cpu")
        return model.eval()

    with mock.patch.object(ModelMixin, "from_pretrained", classmethod(from_pretrained)):
        with mock.patch.object(nn.Module, "_apply", lambda module, *_, **__: module):
            yield


def count_text_weights(base: Path, parts: tuple[str, ...]) -> int:
    """Weights of what makes prompt embeddings: text encoders, and connectors where there are some.

    Args:
        base: its folder.
        parts: beginnings of the names of folders that may hold some.

    Raises:
        UserError: a config names no class that is known.
    """
    folders = sorted(path for path in base.iterdir() if path.name.startswith(parts) and path.is_dir())
    return sum(_count(base, folder.name) for folder in folders if (folder / "config.json").is_file())


def _count(base: Path, part: str) -> int:
    with errors_of_base(base / part, part), torch.device("meta"):
        config = read_config(base, part)
        if part.startswith("text_encoder"):
            import transformers

            named = (config.get("architectures") or [""])[0]
            made: Any = transformers.AutoConfig.from_pretrained(base / part)
            model = getattr(transformers, named)(made)
        elif config.get("_class_name") == "LTX2TextConnectors":
            from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors

            model = LTX2TextConnectors.from_config(dict(config))
        else:  # a tokenizer
            return 0
    return sum(parameter.numel() for parameter in model.parameters())
