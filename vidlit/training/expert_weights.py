"""The transformers of a base with experts: which are trained, which are only asked, and where each of them waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vidlit.lightning_internals import is_attached
from vidlit.models.adapters import LoRAFile, choose_trained, export_weights
from vidlit.training.blocks.sharding import whole

if TYPE_CHECKING:
    from vidlit.training.module import VideoDiffusionModule


class ExpertWeights(Mapping[str, nn.Module]):
    """The base's transformers by name, each where it can be asked once it is looked up.

    Trained ones are the module's own. One that is not trained is loaded when it is first asked, which samples alone do,
    and with its LoRA where that comes from a file: it stays frozen, and no checkpoint holds it. With
    ``model.memory.offload_experts`` the one that is asked is on the device, and all others wait on the CPU.

    Args:
        module: whose transformers they are.
    """

    def __init__(self, module: VideoDiffusionModule) -> None:
        # Kept from nn.Module, which would take them for children of the module.
        self._module = module
        self._frozen: dict[str, nn.Module] = {}
        self.starts: dict[str, dict[str, Tensor]] = {}
        """Of each transformer with an adapter that is to be trained, the adapter's weights at the start: so the base is
        never read again."""
        self.asked = module.expert_names[0]
        """The one that was asked last: with offloading it alone is on the device."""

    @property
    def _offloads(self) -> bool:
        return self._module.memory.offload_experts and len(self) > 1

    def __getitem__(self, name: str) -> nn.Module:
        module = self._module
        if name not in module.expert_names and name not in self._frozen:
            self._frozen[name] = self._load_frozen(name)
        if self._offloads and name != self.asked:
            before, self.asked = self.asked, name
            self._loaded(before).to("cpu")
        transformer = self._loaded(name)
        if self._offloads or name in self._frozen:
            transformer.to(module.device)
        return transformer

    def device_of(self, name: str) -> torch.device:
        """Where a transformer is until it is asked."""
        waits = self._offloads and name != self.asked
        return torch.device("cpu") if waits else self._module.device

    def __iter__(self) -> Iterator[str]:
        return (expert.name for expert in self._module.family.experts)

    def __len__(self) -> int:
        return len(self._module.family.experts)

    def fresh(self, name: str) -> nn.Module:
        """A base's transformer on the CPU, with an untrained adapter where there is one."""
        module = self._module
        low = module.memory.lowers_base and module.adapter is not None  # trained layers start from all their digits
        transformer = module.family.load_transformer(torch.bfloat16 if low else torch.float32, name)
        choose_trained(transformer, module.family, module.adapter_of(name), module.layers, module.seed)
        only_asked = is_attached(module) and module.trainer.state.fn != "fit"
        if module.adapter is not None and not only_asked:
            trained = {key: value for key, value in transformer.named_parameters() if value.requires_grad}
            self.starts[name] = {key: value.detach().clone() for key, value in trained.items()}
        return transformer

    def export(self, folder: Path) -> list[Path]:
        """Write what users take away of the trained ones; see :meth:`VideoDiffusionModule.export`."""
        module = self._module
        gathers = module.device_mesh is not None or (module.layers is not None and module.memory.changes_base)
        is_first = module.global_rank == 0
        written = []
        for name, trained in module.transformers.items():
            transformer = whole(trained, partial(self._to_fill, name), is_first) if gathers else trained
            if is_first:
                written += export_weights(module.family, transformer, folder, name)
        return written

    def _to_fill(self, name: str) -> nn.Module:
        """What whole trained weights are put into: the base's transformer, or one without weights beside an adapter."""
        module = self._module
        some_are_the_bases = module.layers is not None or (module.adapter is None and module.family.idle)
        return module.family.load_transformer(expert=name) if some_are_the_bases else module.structure(name)

    def _loaded(self, name: str) -> nn.Module:
        loaded: nn.Module = self._frozen[name] if name in self._frozen else getattr(self._module, name)
        return loaded

    def _load_frozen(self, name: str) -> nn.Module:
        module = self._module
        low = module.memory.lowers_base or module.device.type != "cpu"
        transformer = module.family.load_transformer(torch.bfloat16 if low else torch.float32, name)
        adapter = module.adapter_of(name)
        if isinstance(adapter, LoRAFile):  # a fresh one is for what is trained
            choose_trained(transformer, module.family, adapter, None, module.seed)
        return transformer.requires_grad_(False).eval()

    @contextmanager
    def left_where_they_are(self) -> Iterator[None]:
        """While the module moves to another device, what waits is no part of it; in order, so that no name moves."""
        waiting = {name for name in self if name != self.asked} if self._offloads else set()
        modules = self._module._modules
        order = dict(modules)
        for name in waiting & order.keys():
            del modules[name]
        try:
            yield
        finally:
            modules.clear()
            modules.update(order)
