"""Write the procedural clips and the tiny base model of the quickstart (demo DIR)."""

from __future__ import annotations

from pathlib import Path


def run(words: list[str]) -> None:
    """Run the command.

    Args:
        words: of the command line, from the command's name on.
    """
    from jsonargparse import ArgumentParser

    from vidlit.data.demo_folder import Demo

    parser = ArgumentParser(prog="vidlit demo", description="Write the procedural clips and the tiny base model.")
    parser.add_class_arguments(Demo, skip={"dir"})
    parser.add_argument("dir", type=Path, help="folder to write clips/ and base/ to")
    demo = Demo(**vars(parser.parse_args(words[1:])))
    demo.write()
    print(f"{demo.num_videos * demo.clips_per_video} clips in {demo.dir / 'clips'}, base model in {demo.dir / 'base'}")
