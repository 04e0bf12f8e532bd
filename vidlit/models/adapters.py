"""What of the transformer is trained, and how the result leaves: LoRA and its like through peft, or all weights."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from vidlit.diffusion.noising import keyed_generator
from vidlit.diffusion.rank_by_noise import RankByNoise
from vidlit.errors import UserError
from vidlit.models.comfyui import comfyui_lora
from vidlit.models.family import Family
from vidlit.whole_files import make_readable

ADAPTER_NAME = "default"
LORA_NAME = "pytorch_lora_weights"
"""How names of LoRA files begin, in diffusers and here."""
EXPERT = "expert"
"""Key in a LoRA file's metadata that says which of a base's experts it is of."""


Variant = Literal["lora", "rslora", "dora", "lokr", "tlora"]
TITLES: Mapping[Variant, str] = {
    "lora": "LoRA",
    "rslora": "rsLoRA",
    "dora": "DoRA",
    "lokr": "LoKr",
    "tlora": "T-LoRA",
}


@dataclass(frozen=True)
class LoRA:
    """Low-rank adapters (https://arxiv.org/abs/2106.09685) on the transformer's attention; the base stays frozen.

    What is idle in the family gets none, whatever the targets say.

    Args:
        rank: rank of the update.
        alpha: scale of the update, times ``rank``: the update is multiplied by ``alpha / rank``.
        dropout: dropout probability on the adapter's input.
        targets: pattern for the modules to adapt, matched against whole names; ``None`` for the family's own.
        variant: ``lora``; ``rslora`` multiplies by ``alpha / sqrt(rank)`` (https://arxiv.org/abs/2312.03732); ``dora``
            trains the length of each output's weights by itself (https://arxiv.org/abs/2402.09353); ``lokr`` is a
            Kronecker product of two small matrices (https://arxiv.org/abs/2309.14859); ``tlora`` is a LoRA with half of
            its ranks where all is noise, all of them where nothing is (https://arxiv.org/abs/2507.05964).

    Raises:
        UserError: the variant has no dropout.
    """

    rank: int = 16
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str | None = None
    variant: Variant = "lora"

    def __post_init__(self) -> None:
        if self.dropout and self.variant == "lokr":
            raise UserError("model.adapter.dropout is not there for variant lokr, whose input is not reduced: set 0.")

    @property
    def title(self) -> str:
        """What people call it."""
        return TITLES[self.variant]

    def apply(self, transformer: nn.Module, family: Family) -> None:
        """Freeze the transformer and add the adapter to it, in place."""
        from peft import LoKrConfig, LoraConfig

        transformer.requires_grad_(False)
        targets = self.targets or family.lora_targets
        if family.idle:  # peft's exclude_modules would warn wherever nothing of it is hit, and again in the pipeline
            targets = rf"(?!(?:{family.idle})$)(?:{targets})"
        if self.variant == "lokr":
            config = LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=targets)
        else:
            config = LoraConfig(
                r=self.rank,
                lora_alpha=self.alpha,
                lora_dropout=self.dropout,
                target_modules=targets,
                use_dora=self.variant == "dora",
                use_rslora=self.variant == "rslora",
            )
        transformer.add_adapter(config, adapter_name=ADAPTER_NAME)  # type: ignore[operator]  # diffusers' method
        if self.variant == "tlora":
            down = [each for name, each in transformer.named_modules() if name.endswith(f".lora_A.{ADAPTER_NAME}")]
            RankByNoise(self.rank, max(1, self.rank // 2)).watch(transformer, down)


@dataclass(frozen=True)
class LoRAFile:
    """A trained LoRA from a file, whoever made it, to sample with.

    Args:
        path: a safetensors file with the names of diffusers, or others that the family's pipeline understands.
    """

    path: Path

    def expert(self, family: Family, otherwise: str | None = None) -> str:
        """Name of the base's transformer that it is of, as its metadata says where there are several.

        Args:
            family: of the base.
            otherwise: name of the one that a file is of which does not say so; ``None`` to refuse it.

        Raises:
            UserError: the base has several, and the file does not say which.
        """
        first = family.experts[0].name
        if len(family.experts) == 1:
            return first
        try:
            with safe_open(self.path, "pt") as file:
                named = str((file.metadata() or {}).get(EXPERT))
        except (OSError, SafetensorError):
            return otherwise or first  # loading it says what is wrong
        titles = {each.title or each.name: each.name for each in family.experts}
        found = titles.get(named) or otherwise
        if found is None:
            raise UserError(
                f"{self.path} does not say which expert of {family.base} it is of: its metadata has no {EXPERT!r} of "
                f"{' or '.join(titles)}. It fits each of them and is right for one only: say which by model.expert, or "
                "by --expert of vidlit export."
            )
        return found

    def _is_lokr(self) -> bool:
        try:
            with safe_open(self.path, "pt") as file:
                return any(".lokr_" in name for name in file.keys())
        except (OSError, SafetensorError):
            return False  # loading it says what is wrong

    def apply(self, transformer: nn.Module, family: Family) -> None:
        """Add it to the transformer, in place, as the family's pipeline does, or the transformer's own loader.

        Raises:
            UserError: the file cannot be read, or is of another model.
        """
        load = _lora_loader(transformer, family, self._is_lokr())
        try:
            load(self.path.parent, weight_name=self.path.name, adapter_name=ADAPTER_NAME, use_safetensors=True)
        except Exception as error:  # safetensors, diffusers and peft each raise their own
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"{self.path} cannot be loaded as a LoRA of {family.base}: {reason}") from error
        if not getattr(transformer, "peft_config", None):
            raise UserError(f"{self.path} holds no LoRA of {family.base}: it is of another family.")


def lora_files(*places: Path) -> list[LoRAFile]:
    """Files of a LoRA in the first of some places that holds any: a file, or a folder with what training exports.

    Returns:
        One file, or one for each expert; none where no place holds any.

    Raises:
        UserError: what is there is no safetensors file.
    """
    for place in places:
        found = [place] if place.is_file() else [place / f"{LORA_NAME}.safetensors"]
        if not found[0].is_file():
            found = sorted(place.glob(f"{LORA_NAME}_*.safetensors"))
        if found and found[0].suffix != ".safetensors":
            raise UserError(f"{found[0]}: only safetensors files are read, others may hold code.")
        if found:
            return [LoRAFile(path) for path in found]
    return []


def of_experts(family: Family, files: Iterable[LoRAFile], otherwise: str | None = None) -> dict[str, LoRAFile]:
    """Files of a LoRA by the names of the base's transformers that they are of.

    Args:
        family: of the base.
        files: at most one for each transformer.
        otherwise: see :meth:`LoRAFile.expert`.

    Raises:
        UserError: two are of one transformer, or a file does not say of which it is.
    """
    found: dict[str, LoRAFile] = {}
    for file in files:
        name = file.expert(family, otherwise)
        if name in found:
            title = expert_title(family, name)
            of_one = f"the expert {title} of {family.base}" if title else f"{family.base}, which has one transformer"
            raise UserError(f"{found[name].path} and {file.path} are both for {of_one}: name the file of one.")
        found[name] = file
    return found


def pipeline_loads_lora(family: Family) -> bool:
    """Does the family's pipeline have a loader of LoRA files of its own? Where not, the transformer's is used."""
    import diffusers

    return hasattr(getattr(diffusers, family.pipeline_class), "load_lora_weights")


def _lora_loader(transformer: nn.Module, family: Family, is_lokr: bool) -> Callable[..., None]:
    import diffusers

    own: Any = transformer.load_lora_adapter
    if is_lokr or not pipeline_loads_lora(family):  # pipelines look for "lora" in every name
        return own
    pipeline_class = getattr(diffusers, family.pipeline_class)
    wanted = inspect.signature(pipeline_class).parameters.values()
    parts = {each.name: None for each in wanted if each.default is inspect.Parameter.empty}
    return pipeline_class(**{**parts, "transformer": transformer}).load_lora_weights


def choose_trained(
    transformer: nn.Module, family: Family, adapter: LoRA | LoRAFile | None, layers: str | None, seed: int
) -> None:
    """Set which weights are trained, in place: those of an adapter, some layers', or all; never those that are idle.

    Args:
        transformer: of the base.
        family: of the base.
        adapter: to put in; ``None`` for none.
        layers: pattern of the names of modules to train; ``None`` for all that training reaches.
        seed: of the adapter's weights.
    """
    if layers is not None:
        train_layers(transformer, layers)
    freeze(transformer, family.idle)
    if adapter is not None:
        # Fresh adapter weights are the only ones drawn here: keyed, so that they do not depend on what ran before.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(keyed_generator("adapter", seed).initial_seed())
            adapter.apply(transformer, family)


def freeze(transformer: nn.Module, pattern: str) -> None:
    """Freeze the parameters whose whole name matches a pattern, in place; no pattern matches none."""
    for name, parameter in transformer.named_parameters():
        if pattern and re.fullmatch(pattern, name):
            parameter.requires_grad_(False)


@contextmanager
def without_adapter(transformers: Iterable[nn.Module]) -> Iterator[None]:
    """Transformers with an adapter predict as their base does while this is open.

    By peft's own flag, but not by the method that sets it: weights would for a moment not be trainable. A scale of 0
    would not do: it leaves a DoRA its magnitudes.

    Raises:
        ValueError: one of them has no adapter.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = []
    for transformer in transformers:
        found = [module for module in transformer.modules() if isinstance(module, BaseTunerLayer)]
        if not found:
            raise ValueError("there is no adapter to switch off")
        layers += found
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def train_layers(transformer: nn.Module, pattern: str) -> None:
    """Freeze all but the modules whose whole name matches a pattern, in place.

    Raises:
        UserError: it matches none that has weights, or is no pattern.
    """
    transformer.requires_grad_(False)
    try:
        chosen = [module for name, module in transformer.named_modules() if name and re.fullmatch(pattern, name)]
    except re.error as error:
        raise UserError(f"model.layers {pattern!r} is not a valid pattern: {error}.") from error
    for module in chosen:
        module.requires_grad_(True)
    if not any(parameter.requires_grad for parameter in transformer.parameters()):
        names = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        raise UserError(
            f"model.layers {pattern!r} matches no module with weights. Names look like {', '.join(names[:4])}."
        )


def expert_title(family: Family, expert: str) -> str:
    """What people call one of a base's experts; empty where it has one transformer."""
    if len(family.experts) == 1:
        return ""
    found = next(each for each in family.experts if each.name == expert)
    return found.title or found.name


def export_weights(family: Family, transformer: nn.Module, folder: Path, expert: str = "transformer") -> list[Path]:
    """Write the trained weights in the layout that diffusers loads.

    Args:
        family: of the transformer.
        transformer: with the weights to keep.
        folder: written to; made if missing.
        expert: which of the family's experts it is.

    Returns:
        The files: ``pytorch_lora_weights.safetensors`` for an adapter, and ``comfyui_lora.safetensors`` where it is
        two matrices a layer, which a DoRA and a LoKr are not, and ComfyUI's names of all its layers are known; else
        the folder ``transformer``'s. Of a base with experts each file has its expert's title in its name
        (``pytorch_lora_weights_high.safetensors``) and in its metadata: it fits the other one, too, and nothing would
        say so. Each has a folder of its own.
    """
    if not getattr(transformer, "peft_config", None):
        transformer.save_pretrained(folder / expert)  # type: ignore[operator]  # diffusers' method
        written = sorted((folder / expert).iterdir())
        make_readable(written)
        return written
    import diffusers
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoKrConfig, get_peft_model_state_dict

    # All pipelines that save a transformer's LoRA write the same: any will do for one that does not.
    writer = family.pipeline_class if pipeline_loads_lora(family) else "HunyuanVideoPipeline"
    state = get_peft_model_state_dict(transformer)
    title = expert_title(family, expert)
    suffix = f"_{title}" if title else ""
    written = [folder / f"{LORA_NAME}{suffix}.safetensors"]
    getattr(diffusers, writer).save_lora_weights(
        folder,
        weight_name=written[0].name,
        transformer_lora_layers=state,
        # Without the metadata alpha falls back to the rank when the file is loaded, with no warning.
        **_collate_lora_metadata({"transformer": transformer}),
    )
    if title:
        with safe_open(written[0], "pt") as file:
            saved, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()
        save_file(saved, written[0], {**(metadata or {}), EXPERT: title})
    config: Any = transformer.peft_config[ADAPTER_NAME]  # type: ignore[index]  # set by diffusers
    if isinstance(config, LoKrConfig) or config.use_dora:
        make_readable(written)
        return written
    renamed = comfyui_lora(
        family.comfyui_layers,
        state,
        config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r),
        lambda layer: int(transformer.get_submodule(layer).out_features),  # type: ignore[arg-type]  # an attribute is a tensor, too
    )
    if renamed is not None:
        written.append(folder / f"comfyui_lora{suffix}.safetensors")
        save_file(renamed, written[-1], {"format": "pt", **({EXPERT: title} if title else {})})
    make_readable(written)
    return written
