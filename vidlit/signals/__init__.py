"""What has a say in stopping: callbacks that judge the run, and the one that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.signals.signal import Signal as Signal

__getattr__, __dir__, __all__ = attach(__name__, __file__)
