"""Model families, the weight-free codec and adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vidlit.lazy import attach

if TYPE_CHECKING:
    from vidlit.models.adapters import LoRA as LoRA
    from vidlit.models.base_folder import read_config as read_config
    from vidlit.models.codec import PatchDCTCodec as PatchDCTCodec
    from vidlit.models.encoders import PromptEncoder as PromptEncoder
    from vidlit.models.encoders import T5PromptEncoder as T5PromptEncoder
    from vidlit.models.families.ltx_video import LTXVideo as LTXVideo
    from vidlit.models.families.unmasked_attention import UnmaskedAttention as UnmaskedAttention
    from vidlit.models.families.wan import AskedAtTimesteps as AskedAtTimesteps
    from vidlit.models.family import Family as Family
    from vidlit.models.family import open_family as open_family
    from vidlit.models.registry import known_families as known_families

__getattr__, __dir__, __all__ = attach(__name__, __file__)
