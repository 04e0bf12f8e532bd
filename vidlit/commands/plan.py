"""Dry run of a fit: clips used and left out, batches, cost."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidlit.bounded_yaml import check_size, read_text
from vidlit.commands.cli.configs import TRAINER_DEFAULTS, allow_imports, check_classes, expand_paths
from vidlit.commands.cli.plain_parser import PlainParser, true_or_false
from vidlit.commands.cli.run_lightning import loading
from vidlit.commands.options.checking import read_words, values_of
from vidlit.commands.options.old_keys import rename_config
from vidlit.commands.options.option_list import option_lists
from vidlit.commands.planning.plan_words import print_plan
from vidlit.runs.redaction import redact_text

if TYPE_CHECKING:
    from argparse import Namespace

    from jsonargparse import ArgumentParser

    from vidlit.commands.planning.memory_words import MemoryPlan
    from vidlit.data.clip_folder import ClipFolder
    from vidlit.forecast.card import GraphicsCard
    from vidlit.forecast.run_plan import RunPlan
    from vidlit.forecast.time_forecast import TimeForecast

_READ = (
    "data",
    "demo",
    "seed_everything",
    "model.base",
    "model.audio",
    "model.conditions",
    "model.optimizer",
    "model.noise",
    "model.expert",
    "model.context_parallel",
    "trainer.max_steps",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate_grad_batches",
    "trainer.val_check_interval",
)
_READ_FOR_MEMORY = (
    *_READ,
    "model",
    "samples.num_audit",
    "samples.max_share",
    "trainer.precision",
    "trainer.strategy",
    "trainer.gradient_clip_val",
)
"""What a plan depends on. The rest is left unread: making a Trainer and callbacks takes longer than planning."""
_LAUNCHERS = ("TORCHELASTIC_", "SLURM_", "LSB_", "OMPI_", "PMI_")
"""How the environment variables begin of what starts a process for each device."""


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    own, others = parser().parse_known_args(words[1:])
    card = None
    if asked := own.fit_to or own.gpu_memory:
        from vidlit.forecast.card import parse_memory

        card = parse_memory(asked)
    if own.gpu is not None:
        with loading("torch"):
            from vidlit.commands.planning.time_words import check_card
        own.gpu = check_card(own.gpu)
    from vidlit.models.base_folder import configs_alone

    with configs_alone():  # a plan needs no weights, and may come before anybody wants to fetch them
        _say(own, others, card)


def _say(own: Namespace, others: list[str], card: GraphicsCard | None) -> None:
    words = ["plan", *others]
    made, data = _plan_and_data(words)
    commands = small_set_commands(made, others)
    if not own.json:
        print_plan(made, commands=commands)
    memory, time = costs_of(words, made, data, card, own.gpu, gpu_price=own.gpu_price, fit=bool(own.fit_to))
    if own.json:
        found = {"memory": memory and memory.as_dict(), "time": time and time.as_dict()}
        print(json.dumps({**made.as_dict(), "small_set": commands, **found}, indent=2))
    if memory is not None and not own.json:
        from vidlit.commands.planning.memory_words import print_memory

        print_memory(memory)
    if time is not None and not own.json:
        from vidlit.commands.planning.time_words import print_time

        print_time(time)
    if memory is not None and memory.fitted is not None:
        from vidlit.commands.planning.memory_words import write_fitted

        print(write_fitted(memory, Path(f"fit_to_{own.fit_to.strip()}.yaml")), file=sys.stderr)


def parser() -> PlainParser:
    """The options beside those of ``fit``."""
    made = PlainParser(prog="vidlit plan", description="Dry run of a fit.", allow_abbrev=False)
    made.add_argument("--json", type=true_or_false, default=False, help="print one JSON object")
    made.add_argument("--gpu-memory", help="of the card to judge by, as 24GB (of the GPU that is here)")
    made.add_argument("--fit-to", help="write a YAML with the options that make it fit such a card, as 24GB")
    made.add_argument("--gpu", help="name of the GPU that time is estimated for, as H100 (of the GPU that is here)")
    made.add_argument("--gpu-price", type=float, help="of one GPU for an hour, as 2.5")
    return made


def plan_of(words: list[str]) -> RunPlan:
    """What a fit would do that is given the same words.

    Args:
        words: of the command line, from the command's name on, as :func:`vidlit.commands.options.checking.check` gives
            them.

    Raises:
        UserError: the clips, the buckets or the split cannot be used.
        argparse.ArgumentError: an option cannot be read.
    """
    return _plan_and_data(words)[0]


def _plan_and_data(words: list[str]) -> tuple[RunPlan, ClipFolder]:
    """The plan, and the clips, which have been looked through for it."""
    with loading("torch"):
        from vidlit.data.demo_folder import Demo
        from vidlit.forecast.run_plan import make_plan
        from vidlit.models.parts import num_scored
        from vidlit.training.blocks.context_parallel import check_context, check_family

        reader = _reader()
    config = _parsed(reader, words, _READ)
    if config.demo is not None:
        Demo(**vars(config.demo)).write()
    made = reader.instantiate(config)
    trainer, interval = made.trainer, made.trainer.val_check_interval
    family, degree = made.data.family, made.model.context_parallel
    num_ranks = _num_processes(trainer.accelerator, trainer.devices, trainer.num_nodes)
    check_family(family, degree)
    check_context(family, degree, num_ranks, made.data.buckets)
    plan = make_plan(
        made.data,
        max_steps=trainer.max_steps,
        num_replicas=num_ranks // degree,
        accumulate=trainer.accumulate_grad_batches,
        learning_rate=_learning_rate(config.model.optimizer),
        num_strata=made.model.noise.num_strata * num_scored(made.data.family, made.model.expert),
        check_interval=max(1, interval // trainer.accumulate_grad_batches) if isinstance(interval, int) else None,
    )
    return plan, made.data


def costs_of(
    words: list[str],
    plan: RunPlan,
    data: ClipFolder,
    card: GraphicsCard | None = None,
    gpu: str | None = None,
    *,
    gpu_price: float | None = None,
    fit: bool = False,
) -> tuple[MemoryPlan, TimeForecast | None] | tuple[None, None]:
    """The forecast of a fit's memory and time that is given the same words; none for one on a CPU, if no GPU is named.

    Args:
        words: as for :func:`plan_of`.
        plan: of the fit.
        data: its clips.
        card: to judge by; ``None`` for the one that is here.
        gpu: name of the GPU that time is estimated for; ``None`` for the one that is here.
        gpu_price: of one, an hour.
        fit: look for options with which it fits.

    Raises:
        UserError: an option cannot be used.
    """
    said = values_of(words, "trainer.accelerator")
    if card is None and gpu is None and said.get("trainer.accelerator") == "cpu":
        return None, None
    with loading("torch"):
        from lightning.pytorch.strategies import ModelParallelStrategy

        from vidlit.commands.planning.memory_words import plan_memory
        from vidlit.forecast.card import card_here
        from vidlit.forecast.memory_forecast import setting_of
        from vidlit.forecast.remedies import Option
        from vidlit.forecast.time_forecast import foretell_time
        from vidlit.latents.quiet_lightning import quiet_lightning
        from vidlit.training.precision import multiplies_low

        reader = _reader(with_model=True)
    config = _parsed(reader, words, _READ_FOR_MEMORY)
    made = reader.instantiate(config)
    trainer, here = made.trainer, card_here()
    processes = _num_processes(trainer.accelerator, trainer.devices, 1)
    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    setting = setting_of(
        data,
        precision=trainer.precision,
        accumulate=trainer.accumulate_grad_batches,
        clip_val=trainer.gradient_clip_val,
        shards=processes * trainer.num_nodes if sharded else 1,
        processes=processes,
        audits=made.samples.num_audit > 0,
        replicated=not sharded and processes * trainer.num_nodes > 1,
    )
    with quiet_lightning():
        memory = plan_memory(Option(made.model, setting, data.buckets), card or here, fit=fit)
    time = foretell_time(
        made.model,
        data,
        plan,
        gpu=gpu or (None if here is None else here.name),
        gpus=_num_processes(trainer.accelerator, trainer.devices, trainer.num_nodes),
        low_precision=multiplies_low(setting.precision),
        audits_share=made.samples.max_share if setting.audits else 0.0,
        gpu_price=gpu_price,
    )
    return memory, time


def _parsed(reader: ArgumentParser, words: list[str], read: Sequence[str]) -> Any:
    allow_imports()
    config = reader.parse_args(_needed(words, read))
    check_classes(config)
    expand_paths(config)
    return config


def _reader(*, with_model: bool = False) -> ArgumentParser:
    """A parser of what a plan depends on, as LightningCLI's reads it; the model takes longest to import."""
    import torch
    from jsonargparse import ArgumentParser

    from vidlit.commands.cli.references import link_references
    from vidlit.data.clip_folder import ClipFolder
    from vidlit.data.demo_folder import Demo
    from vidlit.diffusion.conditions import Condition
    from vidlit.diffusion.noising import Noise
    from vidlit.models.parts import AudioChoice, ExpertChoice

    made = ArgumentParser(prog="vidlit", exit_on_error=False)
    made.add_argument("--config", action="config")
    made.add_argument("--seed_everything", type=bool | int, default=0)
    made.add_argument("--demo", type=Demo | None, default=None)
    made.add_class_arguments(ClipFolder, "data", skip={"further_captions"})
    if with_model:
        from lightning.pytorch.strategies import Strategy

        from vidlit.training.module import VideoDiffusionModule

        made.add_argument("--trainer.strategy", type=str | Strategy, default="auto")
        made.add_class_arguments(VideoDiffusionModule, "model", fail_untyped=False)
        made.add_argument("--samples.num_audit", type=int, default=16)
        made.add_argument("--samples.max_share", type=float, default=0.1)
    else:
        made.add_argument("--model.base", type=str)
        made.add_argument("--model.audio", type=AudioChoice, default="off")
        made.add_argument("--model.conditions", type=list[Condition] | None, default=None)
        made.add_argument(
            "--model.optimizer", type=Callable[[Iterable], torch.optim.Optimizer], default=torch.optim.AdamW
        )
        made.add_argument("--model.noise", type=Noise, default=Noise())
        made.add_argument("--model.expert", type=ExpertChoice, default="both")
        made.add_argument("--model.context_parallel", type=int, default=1)
    for name, kind, default in (
        ("max_steps", int, TRAINER_DEFAULTS["max_steps"]),
        ("accelerator", Any, "auto"),
        ("devices", Any, TRAINER_DEFAULTS["devices"]),
        ("num_nodes", int, 1),
        ("accumulate_grad_batches", int, 1),
        ("val_check_interval", Any, None),
        ("precision", Any, None),
        ("gradient_clip_val", Any, TRAINER_DEFAULTS["gradient_clip_val"]),
    ):
        made.add_argument(f"--trainer.{name}", type=kind, default=default)
    made.link_arguments("seed_everything", "data.seed", compute_fn=int)
    made.link_arguments("model.base", "data.base")
    made.link_arguments("model.audio", "data.audio")
    link_references(made)
    if with_model:
        made.link_arguments("seed_everything", "model.seed", compute_fn=int)
        made.link_arguments("data.fps", "model.fps")
    return made


def _needed(words: list[str], read: Sequence[str]) -> list[str]:
    """The words, and of the config files the keys, that a plan depends on."""
    needed = []
    for given in read_words(words, option_lists()["plan"]):
        if given.value is None:
            continue
        if given.name in ("config", "c"):
            needed.append(f"--config={_as_yaml(_pick(_load(given.value), read))}")
        elif given.name in ("model", "trainer"):
            needed.append(f"--config={_as_yaml(_pick({given.name: _load(given.value)}, read))}")
        elif _is_read(given.name.removesuffix("+"), read):
            needed.append(f"--{given.name}={given.value}")
    return needed


def _is_read(name: str, read: Sequence[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in read)


def _pick(config: Mapping[str, Any], read: Sequence[str], above: str = "") -> dict[str, Any]:
    """What a plan reads of a config."""
    picked = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if _is_read(name.removesuffix("+"), read):
            picked[key] = value
        elif isinstance(value, Mapping) and any(each.startswith(f"{name}.") for each in read):
            picked[key] = _pick(value, read, f"{name}.")
    return picked


def _load(value: str) -> dict[str, Any]:
    """YAML, or a file of it."""
    from jsonargparse import get_loader

    text = value if value.lstrip().startswith("{") else read_text(Path(value))
    check_size(text)
    loaded: dict[str, Any] = rename_config(get_loader("yaml")(text)) or {}
    return loaded


def _as_yaml(config: dict[str, Any]) -> str:
    return yaml.safe_dump(config, default_flow_style=True, width=10**9).strip()


def _learning_rate(optimizer: Any) -> float:
    """As the config says it, or the default of the class: making an optimizer takes longer than planning."""
    given = optimizer.init_args.get("lr") if hasattr(optimizer, "init_args") else None
    return float(given if given is not None else inspect.signature(optimizer).parameters["lr"].default)


def _num_processes(accelerator: Any, devices: Any, num_nodes: int) -> int:
    """Ranks of a fit with these options of the Trainer."""
    if devices == 1 and any(name.startswith(_LAUNCHERS) for name in os.environ):
        from vidlit.runs.launch import Launch  # loads Lightning, which knows launchers

        launch = Launch.detect(num_nodes)
        if launch is not None and launch.devices is not None:
            return launch.world_size
    if isinstance(devices, str) and devices.lstrip("-").isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices >= 0:
        return devices * num_nodes
    if isinstance(devices, str) and devices != "auto":
        return len([each for each in devices.split(",") if each.strip()]) * num_nodes
    if isinstance(devices, list):
        return len(devices) * num_nodes
    import torch

    on_gpus = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return (torch.cuda.device_count() if on_gpus else 1) * num_nodes


def small_set_commands(plan: RunPlan, words: Sequence[str]) -> dict[str, str]:
    """The commands that make more of a small set, by what they are for.

    Args:
        plan: of the set.
        words: of the command line, without the command's name.
    """
    options = redact_text(shlex.join(words))
    folds = min(5, plan.split["train"]["videos"] + plan.split["val"]["videos"])
    known = {
        "kfold": f"vidlit kfold {options} --folds {folds}",
        "refit": f"vidlit fit {options} --refit",
    }
    return {name: known[name] for name in plan.small_set}
