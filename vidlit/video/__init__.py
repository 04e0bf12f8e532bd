"""A folder to clips to frames: layouts, buckets, cutting, decoding, duplicates."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.video.buckets import Bucket as Bucket
    from vidlit.video.buckets import BucketBudget as BucketBudget
    from vidlit.video.buckets import BucketPolicy as BucketPolicy
    from vidlit.video.cut import Cutting as Cutting
    from vidlit.video.layouts import Layout as Layout
    from vidlit.video.layouts import Listing as Listing

__getattr__, __dir__, __all__ = attach(__name__, __file__)
