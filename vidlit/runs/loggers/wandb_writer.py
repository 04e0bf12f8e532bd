"""A run in Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlit.runs.logged_names import STEP, VAL_LOG_RATIO, all_rows
from vidlit.runs.loggers.run_writer import LoggedVideo, RunWriter

_TITLE, _TAG = 64, 64  # characters that W&B takes


class WandbWriter(RunWriter):
    """Videos as files, exposures as histograms, warnings as alerts, the decision in the run's summary."""

    logger_class = "WandbLogger"

    @property
    def run(self) -> Any:
        """W&B's own."""
        return self.logger.experiment

    def begin(self, tags: Sequence[str], group: str | None) -> None:
        """What each metric's summary shows; the group was given when the run was opened."""
        for row in all_rows():
            if row.summary is not None:
                self.run.define_metric(row.glob, step_metric=STEP, summary=row.summary)
        self.run.tags = tuple(dict.fromkeys([*(self.run.tags or ()), *(tag[:_TAG] for tag in tags)]))
        if self.run.url:
            print(f"W&B: {self.run.url}")

    def config(self, config: Mapping[str, Any]) -> None:
        """The run's config."""
        self.run.config.update(dict(config), allow_val_change=True)

    def histogram(self, name: str, values: Sequence[int], step: int) -> None:
        """A histogram over the steps."""
        import wandb

        self.run.log({name: wandb.Histogram(values), STEP: step})

    def videos(self, videos: Mapping[str, LoggedVideo], step: int) -> None:
        """The mp4 files themselves."""
        import wandb

        files = {name: wandb.Video(str(each.path), caption=each.caption, format="mp4") for name, each in videos.items()}
        self.run.log({**files, STEP: step})

    def alert(self, title: str, text: str, step: int) -> None:
        """An alert, which W&B may send as a mail."""
        self.run.alert(title=title[:_TITLE], text=text, level="WARN")

    def decision(self, decision: Mapping[str, Any], kept_log_ratio: float | None, step: int) -> None:
        """Into the summary, where a sweep and the table of runs read it."""
        kept = {} if kept_log_ratio is None else {VAL_LOG_RATIO.name: kept_log_ratio}
        self.run.summary.update({**{f"decision/{name}": value for name, value in decision.items()}, **kept})
