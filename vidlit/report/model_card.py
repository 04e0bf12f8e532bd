"""The model card beside exported weights: what they are, what they were trained on and why training stopped."""

from __future__ import annotations

import html
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vidlit import __version__
from vidlit.bounded_yaml import MAX_BYTES, load_yaml
from vidlit.errors import UserError, on_one_screen
from vidlit.runs.directory import write_text
from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.record import Curve, RunRecord
from vidlit.runs.redaction import redact_text
from vidlit.runs.signal_words import titles, words_for

CURVE, SAMPLES = "validation_curve.png", "samples.png"
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_MARKUP = re.compile(r"[\\`*{}\[\]|~^]|(?<!\w)_|_(?!\w)|^[-=>#+]|(?<=:)(?=//)|(?<=^\d)\.")
"""What may begin markup or, in an address, a link."""
_LICENCE_KEYS = ("license", "license_name", "license_link")
_WITHOUT_SIGNAL = {
    "max_steps": "all planned steps were trained",
    "request": "the run was ended by hand",
    "other": "a limit that was set from outside was reached",
}
"""Why a run ended that no signal stopped. A run's own reason may name clips; this, and signals' own words, do not."""


@dataclass(frozen=True)
class CardFacts:
    """What a card says that no file of the run does.

    Args:
        base: hub name or folder of the base model.
        base_folder: where the base lies, for its licence.
        pipeline_class: diffusers pipeline of the family.
        transformer_class: diffusers class of the transformer.
        takes_image: the model goes on from a first frame, always.
        takes_reference: it makes videos from references.
        is_lora: the weights are an adapter.
        experts: title of each transformer that was trained, by name, of a base that has several.
        pipeline_loads_lora: the pipeline has a loader of LoRA files; else the transformer's is used.
        has_guider: the scale of guidance is a part of the pipeline, not of a call.
        size: frames, height and width of a video to make; ``None`` for what the pipeline chooses.
        fps: frames a second of it.
    """

    base: str
    base_folder: Path
    pipeline_class: str
    transformer_class: str
    takes_image: bool
    is_lora: bool
    pipeline_loads_lora: bool = True
    has_guider: bool = False
    takes_reference: bool = False
    experts: Mapping[str, str] = field(default_factory=dict)
    size: tuple[int, int, int] | None = None
    fps: float = 24.0


def write_model_card(run: RunRecord, facts: CardFacts) -> Path:
    """Write ``weights/README.md`` and the pictures it shows.

    Args:
        run: with its weights exported and its samples made.
        facts: of the model.

    Returns:
        The card.
    """
    folder = run.directory.weights
    validation = run.curve(VAL_LOG_RATIO.name)
    if len(validation.steps) > 1:
        _draw_curve(folder / CURVE, validation, run.summary["kept_step"])
    sheet = run.directory.samples(run.summary.get("kept_step", 0)) / "contact_sheet.png"
    if sheet.is_file():
        shutil.copyfile(sheet, folder / SAMPLES)
    card = folder / "README.md"
    write_text(card, _front_matter(facts) + _body(run, facts, folder))
    return card


def base_licence(folder: Path) -> dict[str, str]:
    """The licence that a base's README states in its front matter; empty where it states none."""
    readme = folder / "README.md"
    if not readme.is_file():
        return {}
    with readme.open(errors="replace") as file:
        found = re.match(r"---\n(.*?)\n---", file.read(MAX_BYTES), re.DOTALL)
    try:
        metadata = load_yaml(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    if not isinstance(metadata, dict):
        return {}
    return {key: str(metadata[key]) for key in _LICENCE_KEYS if key in metadata}


def check_hub_name(name: str) -> None:
    """Refuse what cannot be a repository of the hub.

    Raises:
        UserError: it is not of the form owner/name.
    """
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"export.push_to_hub is {name!r}: it must be owner/name, as on the hub.")


def push(folder: Path, name: str) -> str:
    """Upload weights, card and pictures to a repository of the hub, made private where it is new.

    Args:
        folder: of exported weights with their card. Links to the base's parts stay here.
        name: owner/name.

    Returns:
        Its address.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(name, private=True, exist_ok=True)
    api.upload_folder(
        repo_id=name,
        folder_path=folder,
        allow_patterns=["README.md", "*.png", "*.safetensors", "transformer*/*"],  # of experts, too
        commit_message=f"Weights from vidlit {__version__}",
    )
    return str(address)


def _front_matter(facts: CardFacts) -> str:
    metadata: dict[str, Any] = {
        "library_name": "diffusers",
        "pipeline_tag": "video-to-video"
        if facts.takes_reference
        else "image-to-video"
        if facts.takes_image
        else "text-to-video",
        **base_licence(facts.base_folder),
        "tags": ["vidlit", "video", *(["lora"] if facts.is_lora else [])],
    }
    if _HUB_NAME.fullmatch(facts.base) and not Path(facts.base).exists():
        metadata["base_model"] = facts.base
        metadata["base_model_relation"] = "adapter" if facts.is_lora else "finetune"
    return f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n\n"


def _body(run: RunRecord, facts: CardFacts, folder: Path) -> str:
    summary = run.summary
    licence = base_licence(facts.base_folder)
    licence_name = licence.get("license_name", licence.get("license", "see the base model"))
    what = "LoRA for" if facts.is_lora else "Fine-tuned transformer of"
    parts = [
        f"# {plain(run.name)}",
        f"{what} [{facts.base}](https://huggingface.co/{facts.base})."
        if _HUB_NAME.fullmatch(facts.base) and not Path(facts.base).exists()
        else f"{what} {plain(facts.base)}.",
        f"Licence of the base model: {plain(licence_name)}. It holds for these weights, too.",
        "## Training",
        *_training(run),
    ]
    if (folder / CURVE).is_file():
        parts.append(f"![Validation loss against the base model's, by step]({CURVE})")
    if (folder / SAMPLES).is_file():
        parts.append("## Samples")
        if summary["num_clips"]["val"]:
            parts.append("From captions of clips that were not trained on.")
        parts.append(f"![Frames of sampled videos]({SAMPLES})")
    parts += ["## Use", "In the folder of this file:", f"```python\n{_code(facts)}```"]
    parts.append(f"Made with vidlit {__version__}.")
    return "\n\n".join(parts) + "\n"


def _training(run: RunRecord) -> list[str]:
    summary = run.summary
    clips = summary["num_clips"]
    signals = summary["stopped_by"].split("+")
    by = titles(signals, run.signals)
    reason = "; ".join(_WITHOUT_SIGNAL.get(name) or words_for(name, run.signals).because for name in signals)
    facts = [
        f"Trained on {clips['train']} clips; {clips['val']} kept for validation, {clips['test']} for a test.",
        f"Stopped at step {summary['stop_step']} of {summary['planned_steps']} by {plain(by)}: {plain(reason)}.",
    ]
    if summary.get("best_step") is not None:
        facts.append(f"Best step: {summary['best_step']}.")
    for name, part in summary.get("parts", {"": summary}).items():
        facts += _kept(part, f"Of the part {name}: these" if name else "These")
    if seen := summary["exposures_at_kept"]:
        facts.append(f"By then each video had been seen {seen['mean']:,.0f} times on average.")
    return ["\n".join(f"- {fact}" for fact in facts)]


def _kept(summary: Mapping[str, Any], these: str) -> list[str]:
    """Which step's weights a run, or a part of its model, ends with."""
    if summary["kept_step"] == 0:
        return [f"{these} are the base model's own weights: no check was better."]
    kept = [f"{these} weights are those of step {summary['kept_step']}."]
    if (gain := summary["kept_gain"]) is not None:
        kept.append(f"Their validation loss is {VAL_LOG_RATIO.text(-gain)} against the base's.")
    return kept


def _code(facts: CardFacts) -> str:
    """What loads the weights and, where a prompt is all that it takes, makes a video, word for word."""
    base = json.dumps(facts.base)
    if facts.is_lora:
        load = _load_loras(facts)
        code = (
            "import torch\n"
            f"from diffusers import {facts.pipeline_class}\n{_IMPORT * _makes(facts)}\n"
            f"pipeline = {facts.pipeline_class}.from_pretrained({base}, torch_dtype=torch.bfloat16)\n{load}"
        )
    else:
        names = list(facts.experts) or ["transformer"]
        loaded = "".join(
            f'{name} = {facts.transformer_class}.from_pretrained(".", subfolder="{name}", torch_dtype=torch.bfloat16)\n'
            for name in names
        )
        given = "".join(f"{name}={name}, " for name in names)
        code = (
            "import torch\n"
            f"from diffusers import {facts.pipeline_class}, {facts.transformer_class}\n{_IMPORT * _makes(facts)}\n"
            f"{loaded}"
            f"pipeline = {facts.pipeline_class}.from_pretrained(\n"
            f"    {base}, {given}torch_dtype=torch.bfloat16\n)\n"
        )
    guider = "pipeline.guider = pipeline.guider.new(guidance_scale=6.0)  # no argument of a call\n"
    return code + guider * facts.has_guider + _make_video(facts)


_IMPORT = "from diffusers.utils import export_to_video\n"


def _makes(facts: CardFacts) -> bool:
    return not (facts.takes_image or facts.takes_reference)


def _make_video(facts: CardFacts) -> str:
    if not _makes(facts):
        return ""
    size = "" if facts.size is None else ", num_frames={}, height={}, width={}".format(*facts.size)
    return (
        '\npipeline.to("cuda")\n'
        f'video = pipeline(prompt="your prompt"{size}).frames[0]\n'
        f'export_to_video(video, "video.mp4", fps={round(facts.fps)})\n'
    )


def _load_loras(facts: CardFacts) -> str:
    """One line a file: a pair's second transformer must be named, or its file goes into the first without a word."""
    if not facts.pipeline_loads_lora:
        return "".join(
            f'pipeline.{name}.load_lora_adapter(\n    ".", weight_name="pytorch_lora_weights{suffix}.safetensors", '
            f'adapter_name="{title}"\n)\n'
            for name, title in (facts.experts or {"transformer": "lora"}).items()
            for suffix in [f"_{title}" if facts.experts else ""]
        )
    if not facts.experts:
        return 'pipeline.load_lora_weights(".", weight_name="pytorch_lora_weights.safetensors")\n'
    lines = []
    for name, title in facts.experts.items():
        into = f", load_into_{name}=True" if name != "transformer" else ""
        file = f"pytorch_lora_weights_{title}.safetensors"
        lines.append(f'pipeline.load_lora_weights(".", weight_name="{file}", adapter_name="{title}"{into})\n')
    return "".join(lines)


def plain(text: str) -> str:
    """A text that says in Markdown and HTML what it says, and does nothing there: a name may come from anywhere."""
    line = redact_text(" ".join(on_one_screen(text).split()))
    return _MARKUP.sub(r"\\\g<0>", html.escape(line, quote=False))


def _draw_curve(path: Path, curve: Curve, kept_step: int) -> None:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 3), dpi=110, layout="constrained")
    axes = drawn.add_subplot()
    marker = "o" if len(curve.steps) < 40 else ""
    axes.plot(curve.steps, VAL_LOG_RATIO.shown(curve.values), marker=marker, markersize=3)
    axes.axhline(0, color="grey", linewidth=1)
    axes.axvline(kept_step, color="grey", linewidth=1, linestyle="--")
    axes.set_xlabel(f"step (dashed: these weights, {kept_step})")
    axes.set_ylabel(f"{VAL_LOG_RATIO.title},\n{VAL_LOG_RATIO.unit}")
    drawn.savefig(path)
