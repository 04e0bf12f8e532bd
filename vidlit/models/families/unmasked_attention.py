"""Families whose attention over picture and prompt together would be given a mask, and is given none."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vidlit.models.family import Family

if TYPE_CHECKING:
    from vidlit.diffusion.batch import Conditioning


class UnmaskedAttention(Family, ABC):
    """Of a family whose transformer masks padding of prompts in attention over all tokens.

    A mask keeps attention from its fast kernels, at 20,000 tokens for a few of a prompt, even where it leaves nothing
    out. Samples go by length of prompt instead, without padding, and masks that diffusers makes are dropped.
    """

    needs_equal_prompts = True
    processors: ClassVar[Mapping[str, Callable[[], Any]]] = {}
    """What takes the place of a diffusers processor that cannot do without a mask, by the name of its class."""

    def load_transformer(self, dtype: torch.dtype = torch.float32, expert: str = "transformer") -> nn.Module:
        """See :meth:`Family.load_transformer`."""
        return self._without_masks(super().load_transformer(dtype, expert))

    def empty_transformer(self, expert: str = "transformer") -> nn.Module:
        """See :meth:`Family.empty_transformer`."""
        return self._without_masks(super().empty_transformer(expert))

    def _without_masks(self, transformer: nn.Module) -> nn.Module:
        for module in transformer.modules():
            processor: Any = getattr(module, "processor", None)
            if processor is None:
                continue
            if (make := self.processors.get(type(processor).__name__)) is not None:
                module.processor = make()
            module.register_forward_pre_hook(_without_mask, with_kwargs=True)
        return transformer


def _without_mask(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "attention_mask": None}


def every_token(conditioning: Conditioning, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The mask (B, L) that such a transformer is given outside of its attention: it cannot do without."""
    mask = conditioning.mask_for(device, dtype)
    return torch.ones(conditioning.prompt_embeds.shape[:2], dtype=dtype, device=device) if mask is None else mask


def joint_attention() -> Any:
    """The processor of HunyuanVideo, which takes no mask, too."""
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoAttnProcessor2_0

    return HunyuanVideoAttnProcessor2_0()


class MochiJointAttention:
    """Mochi's attention over the picture's and the prompt's tokens, all of which count.

    diffusers' ``MochiAttnProcessor2_0`` looks up in a mask which ones count, and so waits for the device once a block
    and sample.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Picture (B, N, D) and prompt (B, L, D'), each read by both; the rotary tables are (N, heads, half a head)."""
        from diffusers.models.attention_dispatch import dispatch_attention_fn

        query, key, value = _heads(attn, hidden_states, attn.to_q, attn.to_k, attn.to_v, attn.norm_q, attn.norm_k)
        if image_rotary_emb is not None:
            query, key = (_rotated(each, *image_rotary_emb) for each in (query, key))
        prompt = _heads(
            attn,
            encoder_hidden_states,
            attn.add_q_proj,
            attn.add_k_proj,
            attn.add_v_proj,
            attn.norm_added_q,
            attn.norm_added_k,
        )
        query, key, value = (
            torch.cat([picture, words], dim=1) for picture, words in zip((query, key, value), prompt, strict=True)
        )
        attended = dispatch_attention_fn(
            query, key, value, backend=self._attention_backend, parallel_config=self._parallel_config
        )
        picture, words = attended.flatten(2, 3).split([hidden_states.shape[1], encoder_hidden_states.shape[1]], dim=1)
        picture = attn.to_out[1](attn.to_out[0](picture))
        return picture, attn.to_add_out(words) if hasattr(attn, "to_add_out") else words


def _heads(
    attn: Any, tokens: Tensor, to_q: nn.Module, to_k: nn.Module, to_v: nn.Module, norm_q: Any, norm_k: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value (B, N, heads, D) of tokens."""
    query, key, value = (layer(tokens).unflatten(2, (attn.heads, -1)) for layer in (to_q, to_k, to_v))
    return query if norm_q is None else norm_q(query), key if norm_k is None else norm_k(key), value


def _rotated(tokens: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    even, odd = tokens[..., 0::2].float(), tokens[..., 1::2].float()
    turned = even * cosines - odd * sines, even * sines + odd * cosines
    return torch.stack(turned, dim=-1).flatten(-2).to(tokens.dtype)
