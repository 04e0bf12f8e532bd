"""What ``--help`` shows, without importing what it is about: what people set, on one screen."""

from __future__ import annotations

from vidlit.commands import summaries

COLUMN = 36
"""Where the words begin; longer options push theirs to the right."""

CLIPS = {
    "data.source": "folder of videos with captions",
    "data.store": "folder of encoded latents, kept and reused",
    "data.buckets": "FRAMESxHEIGHTxWIDTH, as [49x480x704]",
    "data.fps": "frame rate clips are resampled to",
    "data.batches.size": "samples per device and micro-batch",
    "data.split.val_fraction": "share of videos for validation (0.2)",
    "data.cutting.mode": "head, chunk, slide, uniform or scenes",
}
MODEL = {"model.base": "diffusers folder or hub name"}
TRAINING = {
    "model.adapter": "LoRA {rank: 16, alpha: 16}, or null",
    "model.optimizer.init_args.lr": "learning rate",
    "model.warmup_steps": "steps of learning-rate warm-up (0)",
    "model.memory.gradient_checkpointing": "auto, true, false, or a share",
    "model.memory.base_dtype": "dtype of frozen weights: bfloat16, int8, ...",
}
STOPPING = {
    "overfit_stopping.policy.divergence": "stop, warn or off: overfitting",
    "overfit_stopping.policy.copies": "stop, warn or off: samples are copies",
    "overfit_stopping.restore": "weights to keep: best, conservative, last",
    "exposure.hard_cap": "mean number of exposures to stop at",
    "refit": "train again on all clips after the stop",
}
TRAINER = {
    "trainer.max_steps": "largest number of optimizer steps (2000)",
    "trainer.val_check_interval": "batches between checks; null: automatic",
    "trainer.accumulate_grad_batches": "micro-batches per step (1)",
    "trainer.precision": "32-true, bf16-mixed, bf16-true, ...",
}
DEVICES = {"trainer.accelerator": "auto, gpu, cpu, mps", "trainer.devices": "number of devices (1)"}
RUN = {"run.dir": "folder of all runs (runs)", "run.name": "folder of the runs of one name"}
SAMPLES = {
    "samples.num_videos": "videos sampled at the end (4)",
    "samples.num_audit": "samples per audit for copies (16)",
}
OWN_PROMPTS = {"samples.prompts": "a file of your own prompts to sample"}
CHECKPOINT = {"ckpt_path": "a checkpoint, or best or last of the run"}
SCREENS: dict[str, dict[str, dict[str, str]]] = {
    "fit": {
        "clips": CLIPS,
        "model": MODEL | TRAINING,
        "when to stop": STOPPING,
        "training": TRAINER | DEVICES,
        "the run": SAMPLES | OWN_PROMPTS | RUN | {"ckpt_path": "resume from: last, or a checkpoint"},
    },
    "validate": {
        "what": CHECKPOINT | MODEL | CLIPS,
        "where": DEVICES | RUN,
        "result": {"json": "print the result as one JSON object", "output": "file for the same JSON object"},
    },
    "test": {
        "what": CHECKPOINT | MODEL | {"data.split.test_fraction": "share for the test, as in fit"} | CLIPS,
        "where": DEVICES | RUN,
    },
    "predict": {
        "videos": {
            "prompts": "a text or CSV file, or a prompt in quotes",
            "output": "folder for the mp4 files (predictions)",
            "size": "FRAMESxHEIGHTxWIDTH (largest bucket)",
            "overwrite": "replace existing files",
        },
        "weights": CHECKPOINT | {"lora": "a LoRA file, or its folder"} | MODEL,
        "sampling": {
            "samples.num_steps": "denoising steps (30)",
            "samples.seed": "seed of the starting noise (0)",
            "samples.guidance_scale": "guidance; 1 turns it off (1)",
            "samples.negative_prompt": "what guidance steers away from",
            "batch_size": "videos sampled at once (1)",
        },
        "where": DEVICES | RUN,
    },
    "encode": {
        "what": CLIPS | MODEL | {"verify": "only check the checksums of the store"},
        "where": DEVICES,
    },
    "plan": {
        "what": CLIPS | MODEL | {"json": "print the plan as one JSON object"},
        "memory": {
            "gpu-memory": "of the card to judge by: 24GB (the GPU here)",
            "fit-to": "write options that make it fit: 24GB",
        },
        "time": {
            "gpu": "name of the GPU, as H100 (the GPU here)",
            "gpu-price": "of one GPU for an hour, for the cost",
        },
        "training": TRAINER | {"trainer.devices": "number of devices (1)"},
    },
}
"""What people set, of each command that reads a YAML file; ``--help-all`` shows the rest."""
SCREENS["kfold"] = {"folds": {"folds": "number of folds (5)"}, **SCREENS["fit"]}
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
your clips: vidlit init NAME --source FOLDER
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
    lines.append("FILE is yours, or one that comes with vidlit: quickstart, ltx2_lora, ...")
    lines.append(f"All other options: vidlit {name} --help-all")
    return "\n".join(lines)
