"""Merge a LoRA into its base: a whole model in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vidlit.commands.cli.plain_parser import PlainParser, true_or_false
from vidlit.errors import UserError

if TYPE_CHECKING:
    from vidlit.models.adapters import LoRAFile


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    options = parser().parse_args(words[1:])
    if not options.merge:
        raise UserError("vidlit export writes a whole model: say --merge. The LoRA itself lies in the run's weights/.")
    if options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir())):
        raise UserError(f"--output {options.output}: it is there already; give a new folder.")
    files, base = find_lora(options.lora, options.base)

    from vidlit.models.adapters import of_experts
    from vidlit.models.family import open_family
    from vidlit.models.merging import merge_lora
    from vidlit.models.parts import chosen_parts

    family = open_family(base)
    chosen = chosen_parts(family, options.expert)[0].expert if options.expert else None
    found = of_experts(family, files, chosen)
    merge_lora(family, found, options.output, options.scale, copy=options.base_parts == "copy")
    print(f"{base} with {' and '.join(str(file.path) for file in files)} in its weights: {options.output}")


def find_lora(given: Path, base: str | None) -> tuple[list[LoRAFile], str]:
    """The files of a LoRA, one for each expert that it was trained for, and what it was trained on.

    Args:
        given: a file, a folder that holds some, or the directory of a run.
        base: of the LoRA; ``None`` to ask the run.

    Raises:
        UserError: there is no such file, or nothing says what it was trained on.
    """
    from vidlit.bounded_yaml import load_yaml
    from vidlit.models.adapters import LORA_NAME, lora_files
    from vidlit.runs.directory import RunDirectory

    directory = RunDirectory(given)
    if base is None and directory.config.is_file():
        model = (load_yaml(directory.config.read_text("utf-8")) or {}).get("model") or {}
        base = model.get("base")
    files = lora_files(directory.weights, given)
    if not files:
        whole = (directory.weights / "transformer").is_dir()
        hint = f" {directory.weights} is a whole model already: all weights were trained." if whole else ""
        folders = [directory.weights, given] if given.is_dir() else []
        looked = " or ".join(str(folder / f"{LORA_NAME}.safetensors") for folder in folders) or str(given)
        raise UserError(f"{given}: no LoRA ({looked}) is there.{hint}")
    if base is None:
        raise UserError(f"{given} does not say what the LoRA was trained on: give --base, a folder or a hub name.")
    return files, str(base)


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(prog="vidlit export", description="Merge a LoRA into its base and write the whole model.")
    made.add_argument("lora", type=Path, help="run directory, or a LoRA file in safetensors")
    made.add_argument("--base", help="diffusers folder or hub name it was trained on; a run's own if left out")
    made.add_argument("--merge", type=true_or_false, default=False, help="put the LoRA into the base's weights")
    made.add_argument("--output", type=Path, required=True, help="new folder, for pipelines and as model.base")
    made.add_argument("--expert", choices=["high", "low"], help="of a pair: which a file is for that does not say so")
    made.add_argument("--scale", type=float, default=1.0, help="strength of the LoRA")
    made.add_argument(
        "--base_parts", choices=["link", "copy"], default="link", help="how the base's other parts come into the folder"
    )
    return made
