"""A folder someone prepared, in any of the usual layouts, to rows of videos with captions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.video.layouts.finding import find_layout as find_layout
    from vidlit.video.layouts.finding import known_layouts as known_layouts
    from vidlit.video.layouts.layout import Layout as Layout
    from vidlit.video.layouts.layout import Listing as Listing
    from vidlit.video.layouts.layout import Rejected as Rejected

__getattr__, __dir__, __all__ = attach(__name__, __file__)
