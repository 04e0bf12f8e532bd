"""What ``--help`` shows, without importing what it is about: what people set, on one screen."""

from __future__ import annotations

from vidlit.commands import summaries

COLUMN = 36
"""Where the words begin; longer options push theirs to the right."""

CLIPS = {
    "data.source": "folder of videos with captions",
    "data.store": "folder of encoded latents, used again",
    "data.buckets": "FRAMESxHEIGHTxWIDTH, as [49x480x704]",
    "data.fps": "frames per second clips are resampled to",
    "data.batches.size": "samples per device and micro-batch",
    "data.split.val_fraction": "share of source videos held out (0.2)",
    "data.cutting.mode": "cut by head, chunk, slide or uniform",
}
MODEL = {"model.base": "diffusers folder or hub name"}
TRAINING = {
    "model.adapter": "LoRA {rank: 16, alpha: 16}, or null",
    "model.optimizer.init_args.lr": "learning rate",
    "model.warmup_steps": "steps over which the rate rises (0)",
    "model.memory.gradient_checkpointing": "less memory for a third more time",
    "model.memory.base_dtype": "of frozen weights: bfloat16, int8, float8",
}
STOPPING = {
    "overfit_stopping.policy.divergence": "stop, warn or off: overfitting",
    "overfit_stopping.policy.copies": "stop, warn or off: samples are copies",
    "overfit_stopping.restore": "weights kept: best, conservative, last",
    "exposure.hard_cap": "stop at this mean number of exposures",
    "refit": "after the stop train again, on all clips",
}
TRAINER = {
    "trainer.max_steps": "optimizer steps at most (2000)",
    "trainer.val_check_interval": "batches between checks; null: chosen",
    "trainer.accumulate_grad_batches": "micro-batches a step (1)",
    "trainer.precision": "32-true, bf16-mixed, bf16-true, ...",
}
DEVICES = {"trainer.accelerator": "auto, gpu, cpu, mps", "trainer.devices": "how many (1)"}
RUN = {"run.dir": "folder of all runs (runs)", "run.name": "folder of the runs of one name"}
SAMPLES = {
    "samples.num_videos": "videos when training is over (4)",
    "samples.num_audit": "samples in an audit for copies (16)",
}
CHECKPOINT = {"ckpt_path": "a checkpoint, or the run's best or last"}
SCREENS: dict[str, dict[str, dict[str, str]]] = {
    "fit": {
        "clips": CLIPS,
        "model": MODEL | TRAINING,
        "when to stop": STOPPING,
        "training": TRAINER | DEVICES,
        "the run": SAMPLES | RUN | {"ckpt_path": "go on: last, or a checkpoint"},
    },
    "validate": {"what": CHECKPOINT | MODEL | CLIPS, "where": DEVICES | RUN},
    "test": {
        "what": CHECKPOINT | MODEL | {"data.split.test_fraction": "share held out for the test, as in fit"} | CLIPS,
        "where": DEVICES | RUN,
    },
    "predict": {
        "videos": {
            "prompts": "a text or CSV file, or a prompt in quotes",
            "output": "folder for the mp4 files (predictions)",
            "size": "FRAMESxHEIGHTxWIDTH; else largest bucket",
            "overwrite": "replace files that are there",
        },
        "weights": CHECKPOINT | {"lora": "a LoRA file, or its folder"} | MODEL,
        "sampling": {
            "samples.num_steps": "denoising steps (30)",
            "samples.seed": "of the start noise (0)",
            "samples.guidance_scale": "1 is none (1)",
            "samples.negative_prompt": "what guidance leads away from",
            "batch_size": "videos sampled at once (1)",
        },
        "where": DEVICES | RUN,
    },
    "encode": {
        "what": CLIPS | MODEL | {"verify": "only compare checksums of what is stored"},
        "where": DEVICES,
    },
    "plan": {
        "what": CLIPS | MODEL | {"json": "print one JSON object, for programs"},
        "training": TRAINER | {"trainer.devices": "how many (1)"},
    },
}
"""What people set, of each command that reads a YAML file; ``--help-all`` shows the rest."""
SCREENS["kfold"] = {"folds": {"folds": "parts of the source videos (5)"}, **SCREENS["fit"]}
SCREENS["kfold"]["the run"] = SAMPLES | RUN


def all_commands() -> str:
    """Every command with its line."""
    width = max(map(len, summaries()))
    lines = "\n".join(f"  {name:{width}}  {summary.removesuffix('.')}" for name, summary in summaries().items())
    return f"""\
usage: vidlit COMMAND [options]

Fine-tunes video diffusion transformers on your clips and stops before they
overfit.

commands
{lines}

Those from fit to encode read a YAML file (--config FILE); any value in it can
be overridden on the command line: --trainer.max_steps 500

options
  --plugin F  load signals, callbacks and families of your own: a file or module
  -v          let Lightning say everything it does
  --debug     show the full traceback of an error
  --version   print the version
  -h, --help  print this; `vidlit COMMAND --help` prints a command's options

start here: vidlit fit --config quickstart
"""


def one_command(name: str) -> str:
    """What people set of a command, on one screen.

    Args:
        name: of one that reads a YAML file.
    """
    lines = [f"usage: vidlit {name} --config FILE [--option value ...]", "", summaries()[name]]
    for title, options in SCREENS[name].items():
        lines.append(title)
        lines += [f"  {'--' + option:{COLUMN - 4}}  {text}" for option, text in options.items()]
    lines.append("FILE is yours, or one that comes with vidlit: quickstart, ltx_video_lora, ...")
    lines.append(f"All other options: vidlit {name} --help-all")
    return "\n".join(lines)
