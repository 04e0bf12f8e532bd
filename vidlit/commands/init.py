"""Look at your clips and your GPU, and write a config to begin with."""

from __future__ import annotations

import shutil
import textwrap
from pathlib import Path

from vidlit.commands.cli.plain_parser import PlainParser, true_or_false
from vidlit.errors import UserError, printable

_FOLDERS = ("my_clips", "clips", "videos")
"""Looked for where --source names none, after one that is called as the run."""


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    options = parser().parse_args(words[1:])
    if options.name is None:
        print(all_families())
    else:
        name = options.name.removesuffix(".yaml")
        output = options.output or Path(f"{name}.yaml")
        print(write_first_config(name, options.source, options.family, options.base, output, options.overwrite))


def parser() -> PlainParser:
    """The command's options."""
    made = PlainParser(
        prog="vidlit init", description="Look at your clips and your GPU, and write a config to begin with."
    )
    made.add_argument("name", nargs="?", help="of the run, and of the file; without it the families are listed")
    made.add_argument("--source", help=f"folder of clips (one called as the run, or {', '.join(_FOLDERS)})")
    made.add_argument(
        "--family", default="", help="as `vidlit init` lists them, or how several begin; what fits the GPU"
    )
    made.add_argument("--base", default="", help="diffusers folder or hub name; the family's own")
    made.add_argument("--output", type=Path, help="file to write (NAME.yaml)")
    made.add_argument("--overwrite", type=true_or_false, default=False, help="replace the file")
    return made


def all_families() -> str:
    """The configs that come with vidlit, with their memory, and which of them fit this machine."""
    from vidlit.commands.starting.shipped_configs import Card, shipped_configs

    card, every = Card.find(), shipped_configs()
    widths = [max(map(len, column)) for column in zip(*((c.family, c.title) for c in every.values()), strict=True)]
    lines = [f"This machine: {card}.", "", "  family, model, GPU memory (estimates)"]
    for family, config in every.items():
        mark = "*" if config.fits(card) or config.fits_in_int8(card) else " "
        lines.append(f"{mark} {family:{widths[0]}}  {config.title:{widths[1]}}  {config.memory()}")
    lines += ["* fits this machine's GPU"] if card.count else []
    return "\n".join(
        [*lines, "", "vidlit init NAME --source FOLDER looks at your clips, takes what fits and writes NAME.yaml"]
    )


def write_first_config(name: str, source: str | None, family: str, base: str, output: Path, overwrite: bool) -> str:
    """Write the file.

    Args:
        name: of the run.
        source: folder of clips; ``None`` to look for one.
        family: of the model; empty for one that fits.
        base: of the model; empty for the family's own.
        output: file to write.
        overwrite: whether it may be there.

    Returns:
        What was found, what was chosen and why, and what comes next.

    Raises:
        UserError: the name or the clips cannot be used, the family is not known, or the file is there.
    """
    from vidlit.commands.cli.configs import check_run_name
    from vidlit.commands.starting.first_config import FirstConfig
    from vidlit.commands.starting.folder_look import look_at
    from vidlit.commands.starting.shipped_configs import Card, choose
    from vidlit.whole_files import write_whole

    check_run_name({"run.name": name})
    if output.exists() and not overwrite:
        raise UserError(f"{output} is there already: --overwrite replaces it, --output names another file.")
    source = source or _find_source(name)
    for given in (source, base):
        if printable(given) != given:  # of several lines, say
            raise UserError(f"{printable(given)}: this name cannot be written into a config: rename the folder.")
    card = Card.find()
    shipped = choose(card, family, base)
    first = FirstConfig(name, source, look_at(source), card, shipped, base)
    text = first.text()
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, text.encode())
    found = [
        *(("clips", line) for line in first.look.lines()),
        ("GPU", str(card)),
        ("model", f"{shipped.title} ({base or shipped.base}): {shipped.memory(base)}, by estimate"),
        ("buckets", f"{', '.join(map(str, first.buckets))}: frames x height x width, {first.fps:g} a second"),
        *(("note", remark) for remark in first.remarks()),
    ]
    written = [
        f"{output} is written. Read it, then:",
        f"  vidlit plan --config {output}",
        f"  vidlit fit --config {output}",
    ]
    return "\n".join([*(_wrapped(label, printable(text)) for label, text in found), *map(printable, written)])


def _wrapped(label: str, text: str) -> str:
    """A line with its label before it, as wide as the terminal."""
    width = min(shutil.get_terminal_size().columns, 120)
    return textwrap.fill(
        text,
        width,
        initial_indent=f"{label:8}",
        subsequent_indent=" " * 8,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _find_source(name: str) -> str:
    for folder in (name, *_FOLDERS):
        if Path(folder).is_dir():
            return folder
    raise UserError(
        f"Which clips? Name their folder: vidlit init {name} --source FOLDER. None of {name}, {', '.join(_FOLDERS)} "
        "is a folder here."
    )
