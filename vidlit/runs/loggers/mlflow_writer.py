"""A run in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vidlit.runs.logged_names import VAL_LOG_RATIO
from vidlit.runs.loggers.run_writer import LoggedVideo, RunWriter, flat

_TAG = 5000  # characters that MLflow takes
_KEPT = f"kept/{VAL_LOG_RATIO.name}"


class MLflowWriter(RunWriter):
    """The config as parameters, videos as artifacts, the decision as tags, a description and a JSON file."""

    logger_class = "MLFlowLogger"

    @property
    def client(self) -> Any:
        """MLflow's own."""
        return self.logger.experiment

    def begin(self, tags: Sequence[str], group: str | None) -> None:
        """As tags of the run."""
        self._tag("tags", ", ".join(tags))
        if group:
            self._tag("group", group)

    def config(self, config: Mapping[str, Any]) -> None:
        """As parameters, which MLflow never changes: what a run that goes on changed is in the file alone."""
        known = self.client.get_run(self.logger.run_id).data.params
        new = {name: value for name, value in flat(config).items() if name not in known}
        self.logger.log_hyperparams(new)
        self.client.log_dict(self.logger.run_id, dict(config), "config.yaml")

    def histogram(self, name: str, values: Sequence[int], step: int) -> None:
        """As a file: MLflow draws none."""
        self.client.log_dict(self.logger.run_id, {"step": step, "values": list(values)}, f"{name}/step_{step:06d}.json")

    def videos(self, videos: Mapping[str, LoggedVideo], step: int) -> None:
        """The mp4 files themselves, in a folder for each name."""
        for name, video in videos.items():
            self.client.log_artifact(self.logger.run_id, str(video.path), f"{name}/step_{step:06d}")

    def alert(self, title: str, text: str, step: int) -> None:
        """As a tag: the latest one."""
        self._tag("alert", f"{title}: {text}")

    def decision(self, decision: Mapping[str, Any], kept_log_ratio: float | None, step: int) -> None:
        """The reason as the run's description, single values as tags, all of it as a file."""
        self._tag("mlflow.note.content", str(decision.get("reason", "")))
        for name, value in decision.items():
            if not isinstance(value, Mapping):
                self._tag(f"decision.{name}", str(value))
        self.client.log_dict(self.logger.run_id, dict(decision), "decision.json")
        if kept_log_ratio is not None:
            self.client.log_metric(self.logger.run_id, _KEPT, kept_log_ratio, step=step)

    def _tag(self, name: str, value: str) -> None:
        self.client.set_tag(self.logger.run_id, name, value[:_TAG])
