"""The W&B workspace as code: which charts of a run stand where, from the rows of logged names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vidlit.bounded_yaml import read_yaml
from vidlit.errors import UserError
from vidlit.runs.logged_names import STEP, LoggedName, all_rows, charts

NUM_SHOWN = 8
"""Videos of each kind."""


def chart_names(num_levels: int) -> dict[str, dict[str, list[str]]]:
    """The logged names in every chart, by section and title: numbers as they are logged, so log-ratios say so.

    Left out is what is told apart by words, such as buckets, which no one knows before a run.
    """
    return {
        section: {_title(heading, rows[0]): _names(rows, num_levels) for heading, rows in headings.items()}
        for section, headings in charts(row for row in all_rows() if _is_drawn(row) and not row.is_keyed).items()
    }


def _is_drawn(row: LoggedName) -> bool:
    return row.kind != "videos"


def _title(heading: str, row: LoggedName) -> str:
    return f"{heading} (log-ratio to the base model)" if row.scale == "log_ratio" else heading


def _names(rows: Iterable[LoggedName], count: int) -> list[str]:
    return [row.at(number) for row in rows for number in range(count if row.is_numbered else 1)]


def make_workspace(project: str, entity: str, num_levels: int = 2) -> Any:
    """A ``wandb_workspaces`` workspace of one project.

    Args:
        project: W&B project.
        entity: user or team; empty takes the one that is logged in.
        num_levels: levels of noise, ``model.noise.num_strata`` of the runs.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError("the dashboard needs wandb-workspaces: pip install 'vidlit[dashboard]'.") from error
    sections = []
    videos = charts(row for row in all_rows() if row.kind == "videos")
    keyed = charts(row for row in all_rows() if _is_drawn(row) and row.is_keyed)
    for section, drawn in chart_names(num_levels).items():
        media = [
            panels.MediaBrowser(title=title, media_keys=_names(rows, NUM_SHOWN), mode="grid", grid_x_axis="step")
            for title, rows in videos.get(section, {}).items()
        ]
        lines = [panels.LinePlot(title=title, x=STEP, y=names) for title, names in drawn.items()]
        lines += [
            panels.LinePlot(title=_title(heading, row), x=STEP, metric_regex=row.pattern)
            for heading, (row, *_) in keyed.get(section, {}).items()
        ]
        sections.append(workspaces.Section(name=section, panels=[*media, *lines], is_open=True))
    return workspaces.Workspace(entity=entity, project=project, name="vidlit", sections=sections)


def as_json(workspace: Any) -> str:
    """What would be sent."""
    return json.dumps(json.loads(workspace._to_model().model_dump_json()), indent=2)


def read_target(configs: Sequence[Path]) -> tuple[str, str, int]:
    """Project, entity (empty where not set) and levels of noise that config files name, the last one counting.

    Raises:
        UserError: a file cannot be read, or none of them has a W&B logger with a project.
    """
    project, entity, num_levels = "", "", 2
    for path in configs:
        config = read_yaml(path) or {}
        if not isinstance(config, Mapping):
            raise UserError(f"--config {path}: holds no options.")
        model = config.get("model") or {}
        num_levels = (model.get("noise") or model).get("num_strata", num_levels)  # in the model itself until now
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
