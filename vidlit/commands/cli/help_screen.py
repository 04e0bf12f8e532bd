"""What ``--help`` shows, without importing what it is about."""

from __future__ import annotations

import textwrap

from vidlit.commands import summaries

WIDTH = 80


def all_commands() -> str:
    """Every command with its line."""
    width = max(map(len, summaries()))
    lines = [
        textwrap.fill(
            summary.removesuffix("."),
            WIDTH,
            initial_indent=f"  {name:{width}}  ",
            subsequent_indent=" " * (width + 4),
        )
        for name, summary in summaries().items()
    ]
    return f"""\
usage: vidlit COMMAND [options]

Fine-tunes video diffusion transformers on your clips and stops before they
overfit.

commands
{chr(10).join(lines)}

All but report, dashboard and demo read a YAML file (--config FILE); any value
in it can be overridden: --trainer.max_steps 500.

options
  -v          let Lightning say everything it does
  --debug     show the full traceback of an error
  --version   print the version
  -h, --help  print this; `vidlit COMMAND --help` prints a command's options

start here: vidlit fit --config configs/quickstart.yaml
"""
