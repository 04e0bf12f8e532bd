"""The W&B workspace as code: which charts of a run stand where. Names nothing that a run does not log."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vidlit.errors import UserError

STEP = "trainer/global_step"
SECTIONS: dict[str, list[tuple[str, list[str]]]] = {
    "Overfitting": [
        ("Held-out clips and training clips, log-ratio to the base", ["val/log_ratio", "train_eval/log_ratio"]),
        ("Gap between the two", ["divergence/gap"]),
        ("Held-out loss by level of noise", ["val/log_ratio_bin_{level}"]),
        ("Rise since the lowest stretch, and its threshold", ["divergence/statistic", "divergence/threshold"]),
        ("Loss", ["train/loss", "val/loss", "train_eval/loss"]),
    ],
    "Samples": [
        ("Copies of training clips", ["copies/count"]),
        ("Nearest sample to a training clip", ["copies/ratio_min"]),
        ("Different samples, against step 0", ["diversity/ratio"]),
        ("Different samples", ["diversity/rke"]),
    ],
    "Exposure": [
        ("How often a source video was seen", ["exposure/mean", "exposure/max"]),
        ("At the reference run's worth", ["exposure/adjusted"]),
        ("Source videos by exposures", ["exposure/histogram"]),
    ],
    "Throughput": [
        ("Samples per second", ["perf/samples_per_s"]),
        ("Tokens per second", ["perf/tokens_per_s"]),
        ("Share of the time waited for data", ["perf/data_wait"]),
        ("Share of the time spent on checks and audits", ["perf/validation_share", "perf/audit_share"]),
        ("Share of the device's peak (MFU)", ["perf/mfu"]),
        ("Peak memory in GB", ["perf/peak_memory_gb"]),
    ],
}
"""Titles and what they chart; ``{level}`` stands for every level of noise."""
MEDIA = {
    "The same prompt and noise over time": ["samples/audit_{number:02d}"],
    "Beside the nearest training clip": ["samples/nearest_{number:02d}"],
    "From the weights that are kept": ["samples/{number:02d}"],
}
NUM_SHOWN = 8


def chart_names(num_levels: int) -> dict[str, list[tuple[str, list[str]]]]:
    """Every chart with the logged names in it, by section."""
    return {
        section: [
            (title, [each.format(level=level) for each in names for level in range(num_levels if "{" in each else 1)])
            for title, names in charts
        ]
        for section, charts in SECTIONS.items()
    }


def make_workspace(project: str, entity: str, num_levels: int = 4) -> Any:
    """A ``wandb_workspaces`` workspace of one project.

    Args:
        project: W&B project.
        entity: user or team; empty takes the one that is logged in.
        num_levels: levels of noise, ``model.num_strata`` of the runs.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'vidlit[dashboard]'.") from error
    sections = []
    for section, charts in chart_names(num_levels).items():
        drawn = [panels.LinePlot(title=title, x=STEP, y=names) for title, names in charts]
        if section == "Samples":
            media = [
                panels.MediaBrowser(
                    title=title,
                    media_keys=[each.format(number=number) for each in names for number in range(NUM_SHOWN)],
                    mode="grid",
                    grid_x_axis="step",
                )
                for title, names in MEDIA.items()
            ]
            drawn = [*media, *drawn]
        sections.append(workspaces.Section(name=section, panels=drawn, is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name="vidlit", sections=sections)


def as_json(workspace: Any) -> str:
    """What would be sent."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json()), indent=2)


def read_target(configs: Sequence[Path]) -> tuple[str, str, int]:
    """Project, entity (empty where not set) and levels of noise that config files name, the last one counting.

    Raises:
        UserError: a file cannot be read, or none of them has a W&B logger with a project.
    """
    project, entity, num_levels = "", "", 4
    for path in configs:
        try:
            config = yaml.safe_load(path.read_text()) or {}
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"--config {path}: cannot be read ({error}).") from error
        if not isinstance(config, Mapping):
            raise UserError(f"--config {path}: holds no options.")
        num_levels = (config.get("model") or {}).get("num_strata", num_levels)
        loggers = (config.get("trainer") or {}).get("logger")
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if isinstance(logger, Mapping) and str(logger.get("class_path", "")).endswith("WandbLogger"):
                arguments = logger.get("init_args") or {}
                project, entity = arguments.get("project") or project, arguments.get("entity") or entity
    if not project:
        raise UserError(
            "no config names a W&B project: give trainer.logger a class_path of lightning.pytorch.loggers.WandbLogger "
            "with init_args {project: NAME}, or use --project."
        )
    return project, entity, num_levels
