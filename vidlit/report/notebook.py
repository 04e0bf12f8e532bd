"""Videos side by side in a notebook's output."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class VideoRow:
    """Shows mp4 files beside each other, playing, when a notebook cell returns it.

    Args:
        paths: of the files, which are put into the output.
        captions: one for each; file names by default.
        width: of each in pixels.
    """

    paths: Sequence[Path]
    captions: Sequence[str] | None = None
    width: int = 200

    def _repr_html_(self) -> str:
        captions = self.captions or [path.stem for path in self.paths]
        shown = []
        for path, caption in zip(self.paths, captions, strict=True):
            data = base64.b64encode(path.read_bytes()).decode("ascii")
            shown.append(
                f'<figure style="display:inline-block;vertical-align:top;width:{self.width}px;margin:4px">'
                f'<video src="data:video/mp4;base64,{data}" style="width:100%" autoplay loop muted playsinline></video>'
                f'<figcaption style="font-size:85%">{escape(caption)}</figcaption></figure>'
            )
        return "".join(shown)
