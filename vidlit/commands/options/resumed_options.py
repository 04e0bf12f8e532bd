"""What a run that goes on does with options that were changed since: it applies them, or refuses them by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from vidlit.bounded_yaml import load_yaml, read_yaml
from vidlit.commands.options.option_list import option_lists
from vidlit.errors import UserError
from vidlit.runs.directory import RunDirectory
from vidlit.runs.resumes import Change

_SCORES = "losses are compared with those of the base model, which were measured with it"
_STATE = "the checkpoint holds what was made with it"
_CLIPS = "it decides which clips there are, how they are made, or on which side of the split they are"
_AUDITS = "audits are compared with that of step 0"

REFUSED: Mapping[str, str] = {
    "seed_everything": "noise, split and order of clips follow from it",
    "run.name": "a run goes on in its own folder",
    "model.adapter": _STATE,
    "model.layers": _STATE,
    "model.expert": _STATE,
    "model.audio": "it decides what is trained and scored, and what is stored of clips and captions",
    "model.ema": _STATE,
    "model.optimizer.class_path": "the checkpoint holds the state of the other one",
    "model.lr_scheduler": "the checkpoint is in the middle of it",
    "model.warmup_steps": "the checkpoint is in the middle of it, or past it",
    "model.noise": _SCORES,
    "model.conditions": _SCORES,
    "model.memory.base_dtype": _SCORES,
    "model.memory.offload_experts": "which expert a step trains was drawn with it",
    "drift.captions": "drift is compared with that of the checks before",
    "data.buckets": _CLIPS,
    "data.fps": _CLIPS,
    "data.cutting": _CLIPS,
    "data.split": _CLIPS,
    "data.trigger": _CLIPS,
    "data.encoding.dtype": _CLIPS,
    "data.encoding.posterior": _CLIPS,
    "data.encoding.tiled": _CLIPS,
    "data.encoding.background": _CLIPS,
    "data.unmasked_weight": _SCORES,
    "data.batches.small_bucket": "the order of batches follows from it",
    "samples.num_audit": _AUDITS,
    "samples.audit_steps": _AUDITS,
    "samples.seed": _AUDITS,
    "samples.guidance_scale": _AUDITS,
    "samples.features": _AUDITS,
    "samples.metrics": _AUDITS,
    "samples.max_share": "how often audits come was chosen by it",
    "trainer.precision": _SCORES,
    "trainer.accumulate_grad_batches": "steps and checks were counted with it",
    "trainer.overfit_batches": _SCORES,
    "trainer.limit_val_batches": _SCORES,
    "trainer.limit_train_batches": "steps were counted with it",
    "trainer.barebones": _STATE,
    "trainer.fast_dev_run": "it is for runs that are not kept",
}
"""Options that a run keeps for all its life, by their names or those of their sections, and why."""

APPLIED: Mapping[str, str] = {
    "demo": "written where it is missing",
    "refit": "from now on",
    "run.report": "from now on",
    "run.watch": "from now on",
    "run.ignore_memory_forecast": "from now on",
    "plugin": "on the command line; those that the run was begun with must be there",
    "model.base": "another place of the same weights; other weights are refused",
    "model.optimizer": "learning rate and the other numbers from the next step on; moments are kept",
    "model.caption_dropout": "from the next step on",
    "model.preservation": "from the next step on",
    "model.memory": "from now on",
    "model.attention": "from now on",
    "model.context_parallel": "as long as `data.batches.size` times the number of ranks, divided by it, is the same",
    "model.bad_steps": "from the next step on",
    "data.source": "another place of the same clips; other clips are refused, by name",
    "data.store": "what it lacks is encoded",
    "data.cache": "from now on",
    "data.caption_variants": "from the next step on",
    "data.batches": "as long as `size` times the number of ranks is the same",
    "data.encoding": "from the next clip that is encoded on",
    "divergence": "from the next check on, which judges the whole curve",
    "exposure": "from the next check on",
    "drift": "from the next check on",
    "overfit_stopping": "from the next check on; a check whose weights were not kept cannot be put back",
    "samples": "from the next audit on, and for the samples at the end",
    "export": "at the end",
    "logging": "from now on",
    "trainer": "from now on",
}
"""All others, and from when on they hold."""

NOT_COMPARED = ("config", "print_config", "ckpt_path", "run.dir", "trainer.default_root_dir", "trainer.logger")
"""What says where a run that goes on is: it may have been moved. And loggers, into whose settings that is written."""
_LIMITS = "trainer.limit_"  # 1.0 is all batches, and so is null
_BOOLEANS = {True: "on", False: "off"}  # what YAML makes of these words where they are in no quotes
_MAX_TOLD = 8


def changed_options(directory: RunDirectory, text: str) -> list[Change]:
    """What differs from the config that a run was last saved with; nothing where none was saved.

    An option that one of the two does not know, as another version wrote it, is no change.

    Args:
        directory: of the run.
        text: the config of the command at hand, written as it would be saved.

    Raises:
        UserError: a run keeps one of these options; names each, and why.
    """
    if not directory.config.is_file():
        return []
    saved, asked = read_yaml(directory.config) or {}, load_yaml(text) or {}
    leaves = {name for name in option_lists()["fit"].options if name not in _sections()}
    changes = [change for change in _differences(saved, asked, "", leaves) if not _is_at(change.option, NOT_COMPARED)]
    refused = [(change, rule) for change in changes if (rule := rule_of(change.option)) in REFUSED]
    if refused:
        lines = [f"{change}: {REFUSED[rule]}" for change, rule in refused[:_MAX_TOLD]]
        more = [f"and {len(refused) - _MAX_TOLD} more"] if len(refused) > _MAX_TOLD else []
        raise UserError(
            f"{directory.path} goes on with options that cannot be changed any more: {'; '.join(lines + more)}. Leave "
            "them as they were, or start a new run, without --ckpt_path."
        )
    return changes


def _sections() -> set[str]:
    names = option_lists()["fit"].options
    return {name.rpartition(".")[0] for name in names if "." in name}


def _differences(saved: Any, asked: Any, option: str, leaves: set[str]) -> Iterator[Change]:
    if not (isinstance(saved, dict) and isinstance(asked, dict)):
        if not _is_same(option, saved, asked):
            yield Change(option, saved, asked)
        return
    # Within an option, a key that only one side has is a difference; between options, another version's.
    keys = saved.keys() | asked.keys() if _is_at(option, leaves) else saved.keys() & asked.keys()
    for key in sorted(keys):
        yield from _differences(saved.get(key), asked.get(key), f"{option}.{key}".lstrip("."), leaves)


def _is_same(option: str, saved: Any, asked: Any) -> bool:
    if option == "model.audio":
        saved, asked = (_BOOLEANS.get(value, value) if isinstance(value, bool) else value for value in (saved, asked))
    return bool(saved == asked or (option.startswith(_LIMITS) and {saved, asked} == {None, 1.0}))


def rule_of(option: str) -> str:
    """The name in :data:`REFUSED` or :data:`APPLIED` that an option goes by: its own, or that of a section it is in."""
    return max((name for name in (*REFUSED, *APPLIED) if _is_at(option, (name,))), key=len)


def _is_at(option: str, names: Iterable[str]) -> bool:
    return any(option == name or option.startswith(f"{name}.") for name in names)


def as_markdown() -> str:
    """The table of the guide: options that are kept, then those that may change."""
    rules = [(REFUSED, "refused"), (APPLIED, "applied")]
    rows = [f"| `{name}` | {what}: {why} |" for table, what in rules for name, why in table.items()]
    return "\n".join(["| option | changed on resume |", "|---|---|", *rows])
