"""A run in TensorBoard."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from vidlit.runs.loggers.run_writer import LoggedVideo, RunWriter, flat
from vidlit.video.mp4 import read_mp4

_WIDTH = 320
"""Largest width of an animated picture: GIF holds each frame almost as it is."""
_FRAMES = 32


class TensorBoardWriter(RunWriter):
    """Videos as animated pictures beside each other, config and decision as text, both in the table of HPARAMS."""

    logger_class = "TensorBoardLogger"

    @property
    def events(self) -> Any:
        """The logger's ``SummaryWriter``."""
        return self.logger.experiment

    def begin(self, tags: Sequence[str], group: str | None) -> None:
        """Tags and group as text: a run here is a folder, and has no other place for them."""
        words = [*tags, *([f"part of {group}"] if group else [])]
        self.events.add_text("tags", ", ".join(words), 0)

    def config(self, config: Mapping[str, Any]) -> None:
        """As YAML, and for the table of HPARAMS."""
        self.events.add_text("config", _code(config), 0)
        self.logger.log_hyperparams({name: _cell(value) for name, value in flat(config).items()})

    def histogram(self, name: str, values: Sequence[int], step: int) -> None:
        """A histogram over the steps."""
        self.events.add_histogram(name, np.asarray(values), step)

    def videos(self, videos: Mapping[str, LoggedVideo], step: int) -> None:
        """Animated pictures: TensorBoard plays no other videos, and its own ``add_video`` needs one more package."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        for name, video in videos.items():
            picture, width, height = _animated(video.path)
            image = Summary.Image(encoded_image_string=picture, width=width, height=height, colorspace=3)
            self.events._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)
            if video.caption:
                self.events.add_text(name, video.caption, step)

    def alert(self, title: str, text: str, step: int) -> None:
        """A text."""
        self.events.add_text("alerts", f"**{title}** {text}", step)

    def decision(self, decision: Mapping[str, Any], kept_log_ratio: float | None, step: int) -> None:
        """The reason with the numbers behind it, and the kept validation loss as the metric of HPARAMS."""
        self.events.add_text("decision", f"{decision.get('reason', '')}\n\n{_code(decision)}", step)
        if kept_log_ratio is not None:
            self.logger.log_metrics({"hp_metric": kept_log_ratio}, step)
        self.events.flush()


def _code(values: Mapping[str, Any]) -> str:
    """YAML as Markdown shows it: a block that is indented."""
    text = yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)
    return "".join(f"    {line}\n" for line in text.splitlines())


def _cell(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _animated(path: Path) -> tuple[bytes, int, int]:
    """A video as a GIF with its width and height: no wider than 320, of 32 frames at most."""
    frames, rate = read_mp4(path)
    every = -(-len(frames) // _FRAMES)
    chosen = [Image.fromarray(frame) for frame in frames[::every]]
    for frame in chosen:
        frame.thumbnail((_WIDTH, _WIDTH), Image.Resampling.BILINEAR)
    written = io.BytesIO()
    first, *others = chosen
    first.save(written, "GIF", save_all=True, append_images=others, duration=round(1000 * every / rate), loop=0)
    return written.getvalue(), first.width, first.height
