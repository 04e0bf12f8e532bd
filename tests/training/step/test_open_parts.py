from collections import Counter

import pytest
import torch
from torch import nn

from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import Stream
from vidlit.errors import UserError
from vidlit.models.parts import Expert, cut_to, parts_of
from vidlit.training.step.open_parts import OpenParts

EXPERTS = parts_of((Expert("transformer", 0.875, "high"), Expert("transformer_2", 0.0, "low")), (Stream(),))
STREAMS = parts_of((Expert(),), (Stream(title="video"), Stream("sound", title="audio", weights="audio_")))


def names(parts):
    return [part.name for part in parts]


@pytest.mark.parametrize("shift", [3.0, 12.0])
def test_experts_take_turns_by_their_share_of_the_noise_levels(shift):
    flow = RectifiedFlow(shift=shift)
    parts = OpenParts(EXPERTS, seed=0)
    drawn = Counter(names(parts.of_step(step, flow))[0] for step in range(4000))
    share = float(flow.share_below(torch.tensor(0.875)))
    assert drawn["low"] / 4000 == pytest.approx(share, abs=0.025)
    assert names(parts.of_step(17, flow)) == names(OpenParts(EXPERTS, seed=0).of_step(17, flow))


def test_an_expert_keeps_its_turn_where_the_other_waits_on_the_cpu():
    parts, flow = OpenParts(EXPERTS, seed=0, turn=10), RectifiedFlow(shift=8.0)
    drawn = [names(parts.of_step(step, flow))[0] for step in range(400)]
    assert all(len(set(drawn[start : start + 10])) == 1 for start in range(0, 400, 10))
    assert len(set(drawn)) == 2


def test_turns_go_by_what_is_drawn_of_an_experts_levels():
    flow = RectifiedFlow(shift=5.0, min_sigma=0.7)
    parts = OpenParts(cut_to(EXPERTS, flow), seed=0)
    low, at, high = flow.share_below(torch.tensor([0.7, 0.875, 1.0])).tolist()
    drawn = Counter(names(parts.of_step(step, flow))[0] for step in range(4000))
    assert drawn["high"] / 4000 == pytest.approx((high - at) / (high - low), abs=0.025)
    with pytest.raises(UserError, match="none of which the expert of low noise"):
        cut_to(EXPERTS, RectifiedFlow(min_sigma=0.9))


def test_what_is_done_has_no_turn():
    parts = OpenParts(EXPERTS, seed=0)
    parts.done.add("high")
    assert {names(parts.of_step(step, RectifiedFlow(shift=12.0)))[0] for step in range(50)} == {"low"}
    assert names(parts.scored) == ["low"]
    parts.done.add("low")
    assert names(parts.scored) == ["high", "low"]


def test_streams_are_trained_together_until_one_is_done():
    parts = OpenParts(STREAMS, seed=0)
    assert not parts.take_turns
    assert names(parts.of_step(0, RectifiedFlow())) == ["video", "audio"]
    parts.done.add("audio")
    assert names(parts.of_step(0, RectifiedFlow())) == ["video"]
    weights = {name: nn.Parameter(torch.ones(1)) for name in ("blocks.attn1", "blocks.audio_attn1")}
    sum(weights.values()).backward()
    parts.drop_gradients(weights.items())
    assert weights["blocks.attn1"].grad is not None
    assert weights["blocks.audio_attn1"].grad is None
