"""Write the quickstart's generated clips and tiny base model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from vidlit.data.demo_folder import Demo

    demo = Demo(**vars(parser().parse_args(words[1:])))
    demo.write()
    clips, base = demo.dir / "clips", demo.dir / "base"
    print(
        f"{demo.num_videos * demo.clips_per_video} clips in {clips}" + (f", base model in {base}" if demo.base else "")
    )
    if demo.base:
        print(f"Next: vidlit fit --config quickstart --demo null --data.source {clips} --model.base {base}")
    else:
        print(f"Next: vidlit init NAME --source {clips}")


def parser() -> ArgumentParser:
    """The command's options."""
    from jsonargparse import ArgumentParser

    from vidlit.data.demo_folder import Demo

    made = ArgumentParser(
        prog="vidlit demo",
        description="Write the quickstart's generated clips and tiny base model.",
        exit_on_error=False,
    )
    made.add_class_arguments(Demo, skip={"dir"})
    made.add_argument("dir", type=Path, help="folder to write clips/ and base/ to")
    return made
