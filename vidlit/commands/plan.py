"""Dry run of a fit: clips used and left out, batches, cost."""

from __future__ import annotations

import inspect
import json
import os
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vidlit.bounded_yaml import check_size, read_text
from vidlit.commands.cli.configs import TRAINER_DEFAULTS, allow_imports, check_classes, expand_paths
from vidlit.commands.cli.plain_parser import PlainParser, true_or_false
from vidlit.commands.cli.run_lightning import loading
from vidlit.commands.options.checking import read_words
from vidlit.commands.options.old_keys import rename_config
from vidlit.commands.options.option_list import option_lists
from vidlit.runs.redaction import redact_text

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser
    from rich.console import Console

    from vidlit.forecast.run_plan import RunPlan

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
"""What a plan depends on. The rest is left unread: making a Trainer and callbacks takes longer than planning."""
_LAUNCHERS = ("TORCHELASTIC_", "SLURM_", "LSB_", "OMPI_", "PMI_")
"""How the environment variables begin of what starts a process for each device."""
_LISTED = 8  # reasons shown of each kind; --json has them all
_SMALL_SET = {
    "kfold": "each recording for validation once, then the best number of steps for all",
    "refit": "once the best step is known, again on all clips",
}
_MOST_CHARACTERS = 400  # of one of them: a name may be as long as its system allows


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    own, others = parser().parse_known_args(words[1:])
    made = plan_of(["plan", *others])
    commands = small_set_commands(made, others)
    if own.json:
        print(json.dumps({**made.as_dict(), "small_set": commands}, indent=2))
    else:
        print_plan(made, commands=commands)


def parser() -> PlainParser:
    """The options beside those of ``fit``."""
    made = PlainParser(prog="vidlit plan", description="Dry run of a fit.", allow_abbrev=False)
    made.add_argument("--json", type=true_or_false, default=False, help="print one JSON object")
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
    with loading("torch"):
        from vidlit.data.demo_folder import Demo
        from vidlit.forecast.run_plan import make_plan
        from vidlit.models.parts import num_scored
        from vidlit.training.blocks.context_parallel import check_context, check_family

        reader = _reader()
    allow_imports()
    config = reader.parse_args(_needed(words))
    check_classes(config)
    expand_paths(config)
    if config.demo is not None:
        Demo(**vars(config.demo)).write()
    made = reader.instantiate(config)
    trainer, interval = made.trainer, made.trainer.val_check_interval
    family, degree = made.data.family, made.model.context_parallel
    num_ranks = _num_processes(trainer.accelerator, trainer.devices, trainer.num_nodes)
    check_family(family, degree)
    check_context(family, degree, num_ranks, made.data.buckets)
    return make_plan(
        made.data,
        max_steps=trainer.max_steps,
        num_replicas=num_ranks // degree,
        accumulate=trainer.accumulate_grad_batches,
        learning_rate=_learning_rate(config.model.optimizer),
        num_strata=made.model.noise.num_strata * num_scored(made.data.family, made.model.expert),
        check_interval=max(1, interval // trainer.accumulate_grad_batches) if isinstance(interval, int) else None,
    )


def _reader() -> ArgumentParser:
    """A parser of what a plan depends on, as LightningCLI's reads it."""
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
    made.add_argument("--model.base", type=str)
    made.add_argument("--model.audio", type=AudioChoice, default="off")
    made.add_argument("--model.conditions", type=list[Condition] | None, default=None)
    made.add_argument("--model.optimizer", type=Callable[[Iterable], torch.optim.Optimizer], default=torch.optim.AdamW)
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
    ):
        made.add_argument(f"--trainer.{name}", type=kind, default=default)
    made.link_arguments("seed_everything", "data.seed", compute_fn=int)
    made.link_arguments("model.base", "data.base")
    made.link_arguments("model.audio", "data.audio")
    link_references(made)
    return made


def _needed(words: list[str]) -> list[str]:
    """The words, and of the config files the keys, that a plan depends on."""
    needed = []
    for given in read_words(words, option_lists()["plan"]):
        if given.value is None:
            continue
        if given.name in ("config", "c"):
            needed.append(f"--config={_as_yaml(_pick(_load(given.value)))}")
        elif given.name in ("model", "trainer"):
            needed.append(f"--config={_as_yaml(_pick({given.name: _load(given.value)}))}")
        elif _is_read(given.name.removesuffix("+")):
            needed.append(f"--{given.name}={given.value}")
    return needed


def _is_read(name: str) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in _READ)


def _pick(config: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """What a plan reads of a config."""
    picked = {}
    for key, value in config.items():
        name = f"{above}{key}"
        if _is_read(name.removesuffix("+")):
            picked[key] = value
        elif isinstance(value, Mapping) and any(each.startswith(f"{name}.") for each in _READ):
            picked[key] = _pick(value, f"{name}.")
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


def print_plan(plan: RunPlan, console: Console | None = None, commands: Mapping[str, str] | None = None) -> None:
    """Show a plan to a person.

    Args:
        plan: to show.
        console: to print to.
        commands: by :func:`small_set_commands`.
    """
    from rich.console import Console
    from rich.table import Table

    from vidlit.data.usage import count_words
    from vidlit.errors import printable
    from vidlit.runs import wording

    console = console or Console()
    say = partial(wording.say, console=console)
    say(f"{plan.source} ({plan.layout}): {plan.clips} clips of {plan.videos} recordings")
    say(count_words(plan.counts))
    if plan.masked:
        say(f"masks: of {plan.masked} of the {plan.clips} clips; the others count everywhere in the loss")
    if plan.references:
        say(
            f"references: {plan.references} {'images' if plan.references_are_images else 'videos'}, which every sample "
            "takes beside its own tokens"
        )
    table = Table("bucket")
    for name in ("clips", "train", "tokens each", "repeats a batch"):
        table.add_column(name, justify="right")
    table.add_column("could merge into")
    for row in plan.buckets:
        table.add_row(
            row.bucket, str(row.clips), str(row.train), str(row.tokens), str(row.repeats_per_batch), row.merge_into
        )
    console.print(table)
    for name, rows, line in (
        ("quarantined", plan.quarantined, "{video}: {reason}"),
        ("dropped", plan.dropped, "{video}: {reason}"),
        ("shortened", plan.shortened, "{video}: {used:.2f} of {total:.2f} s used"),
        ("near-duplicates, treated as one recording", plan.near_duplicates, "{first} = {second} (group {group})"),
        (
            "clips probably cross a cut; data.cutting.mode scenes would cut there",
            [{"clip": clip} for clip in plan.crossing],
            "{clip}",
        ),
        (
            f"of {plan.clips} clips have no sound, and no part in learning it",
            [{"clip": clip} for clip in plan.silent],
            "{clip}",
        ),
        ("in the folder but not in the table", [{"video": video} for video in plan.unlisted], "{video}"),
        *((what, [{"name": name} for name in names], "{name}") for what, names in plan.skipped.items()),
    ):
        if rows:
            say(f"{len(rows)} {name}:")
            for row_ in rows[:_LISTED]:
                say(f"  {printable(line.format(**row_))[:_MOST_CHARACTERS]}")
            if len(rows) > _LISTED:
                say(f"  ... {len(rows) - _LISTED} more (--json lists all)")
    for remark in plan.remarks:
        say(printable(remark)[:_MOST_CHARACTERS])
    sides = [f"{side} {n['clips']} clips of {n['videos']} recordings" for side, n in plan.split.items() if n["clips"]]
    say(f"split by recording (group): {', '.join(sides)}")
    if plan.validation_groups:
        names = [printable(name)[:_MOST_CHARACTERS] for name in plan.validation_groups[:_LISTED]]
        left = len(plan.validation_groups) - len(names)
        say(f"for validation: {', '.join(names)}" + (f", ... {left} more (--json lists all)" if left else ""))
    if commands:
        say(f"A small set: {plan.split['val']['videos']} recordings say little of others, and are missing in training.")
        for name, command in commands.items():
            say(f"  {_SMALL_SET[name]}:")
            say(f"    {printable(command)}")
    say(
        f"{plan.max_steps:,} steps of {plan.batch_size:g} samples ({plan.tokens_per_step:,.0f} tokens), one pass over "
        f"the clips every {plan.steps_per_pass:.1f} steps"
    )
    seen = plan.exposures
    say(
        f"exposures of each recording at the end: {seen['mean']:.1f} on average ({seen['min']} to {seen['max']}): "
        f"{plan.band}. Conservative up to {plan.conservative_max_steps:,} steps, moderate up to "
        f"{plan.moderate_max_steps:,}."
    )
    say(plan.advice)
    checks = plan.checks
    first, last = checks["first_interval"], checks["last_interval"]
    every = f"every {first} steps" + (f" at first, every {last} in the end" if last > first else "")
    say(
        f"checks: {checks['count']}, {every}, of {checks['held_out_clips']} validation clips and "
        f"{checks['train_eval_clips']} for training: they add about {100 * checks['share']:.0f} % to the cost of "
        "training, should it go on to the end"
    )
    todo = plan.encode
    say(
        f"to encode: {todo['clips']} clips, {todo['gigabytes']:.3f} GB, and {todo['captions']} captions, whose size is "
        f"not counted: up to 16 MB each, by family. Decoding takes about {todo['decode_seconds']:.0f} s here, encoding "
        "with the VAE not counted"
    )
