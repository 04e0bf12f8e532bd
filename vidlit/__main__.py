"""``python -m vidlit`` and the ``vidlit`` command: answers help at once, loads the rest when there is work."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vidlit import __version__

HELP = """\
usage: vidlit COMMAND [options]

Fine-tunes video diffusion transformers on your clips and stops before they overfit.

commands that read a YAML file (--config FILE, any value can be overridden: --trainer.max_steps 500)
  fit        encode what is not encoded yet, train, stop by itself, export the best weights, sample videos
  validate   paired losses of a checkpoint on the held-out clips (--ckpt_path FILE)
  test       losses, copies and diversity of a checkpoint on the test split (--ckpt_path FILE)
  predict    videos for prompts as mp4 files, from a checkpoint, a LoRA file or the base (--prompts FILE)
  kfold      fit once a fold of source videos, and say what is best for all clips (--folds 5)
  plan       before training: clips used and left out, batches, exposures, cost (--json)
  encode     only fill the latent store

others
  report RUN_DIR [RUN_DIR ...]
             one HTML page of a run: why it stopped, curves, exposures, samples; several runs side by side
  dashboard  the W&B workspace of a project, as code (--config FILE, --dry-run or --push)
  demo DIR   write the procedural clips and the tiny base model of the quickstart

options
  -v         let Lightning say everything it does
  --debug    show the full traceback of an error
  --version  print the version
  -h, --help print this; `vidlit COMMAND --help` prints all options of a command

start here: vidlit fit --config configs/quickstart.yaml
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        args: words after ``vidlit``; ``None`` takes those of the command line.
    """
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "--debug"):
        print(HELP)
        return 0 if "-h" in words or "--help" in words else 2
    if words[0] == "--version":
        print(f"vidlit {__version__}")
        return 0
    from vidlit.commands.dispatch import run  # torch and Lightning take seconds to import

    return run(words)


if __name__ == "__main__":
    sys.exit(main())
