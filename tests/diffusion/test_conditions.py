"""Which frames samples are given: as the list says, always the same, and as many as the shares say."""

import pytest
import torch

from vidlit.diffusion.conditions import (
    Condition,
    GivenFrames,
    are_always_given,
    check_conditions,
    of_own_frames,
    reads_references,
    without_noise,
)
from vidlit.diffusion.noising import stratum_draws, stratum_given, stratum_sigmas, stream_generator, training_noise
from vidlit.diffusion.rectified_flow import RectifiedFlow
from vidlit.diffusion.streams import LATENTS
from vidlit.errors import UserError

FLOW, KEYS = RectifiedFlow(), torch.arange(400) + 1000
MIXED = (Condition("first", 0.2), Condition("last", 0.1), Condition("first_last", 0.1), Condition(3, 0.2))


def places(num_frames, count=1):
    return torch.rand(count, 1 + num_frames, generator=torch.Generator().manual_seed(num_frames))


@pytest.mark.parametrize(
    ("frames", "given"),
    [("first", "10000"), ("last", "00001"), ("first_last", "10001"), (1, "10000"), (3, "11100")],
)
def test_the_frames_that_a_condition_names(frames, given):
    assert Condition(frames).given(5, None).int().tolist() == [[int(each) for each in given]]


@pytest.mark.parametrize(("frames", "most"), [("first", 1), ("last", 1), ("first_last", 2), (3, 3), (9, 9), ("any", 1)])
def test_a_clip_of_which_nothing_would_be_left_is_given_nothing(frames, most):
    for num_frames in range(1, most + 1):
        assert not Condition(frames).given(num_frames, places(num_frames)).any()
    assert Condition(frames).given(most + 1, places(most + 1)).any()


def test_any_gives_every_number_of_frames_but_all_and_every_place():
    given = Condition("any").given(5, places(5, count=400))
    assert set(given.sum(dim=1).tolist()) == {1, 2, 3, 4}
    assert ((given.float().mean(dim=0) - 0.5).abs() < 0.1).all()
    assert len({tuple(row) for row in given.tolist()}) == 2**5 - 2


@pytest.mark.parametrize("draw", ["training", "validation"])
def test_shares_are_kept_and_a_sample_has_one_condition(draw):
    conditions = (*MIXED, Condition("any", 0.2))
    if draw == "training":
        shape = {LATENTS: (1, 8, 1, 1)}
        given = training_noise(FLOW, 0, 0, range(400), shape, conditions=conditions)[1][LATENTS] == 0
    else:
        given = stratum_given(conditions, 0, KEYS, 1, 8)
    kinds = {Condition(each.frames).given(8, None)[0]: each.share for each in MIXED}
    fixed = torch.zeros(400, dtype=torch.bool)
    for mask, share in kinds.items():
        alike = (given == mask).all(dim=1)
        assert alike.float().mean() == pytest.approx(share, abs=0.06)
        fixed |= alike
    assert (~given.any(dim=1)).float().mean() == pytest.approx(0.2, abs=0.06)
    assert (given.any(dim=1) & ~fixed).float().mean() == pytest.approx(0.2, abs=0.06)


def test_shares_that_sum_to_one_leave_no_sample_out():
    thirds = tuple(Condition(frames, 1 / 3) for frames in ("first", "last", "first_last"))
    check_conditions(thirds)
    assert are_always_given(thirds)
    assert stratum_given(thirds, 0, KEYS, 0, 4).any(dim=1).all()
    assert not are_always_given(MIXED)
    assert not are_always_given(())


def test_a_clip_is_given_the_same_whatever_is_scored_with_it_and_another_at_the_next_level():
    conditions = (*MIXED, Condition("any", 0.4))
    given = stratum_given(conditions, 3, KEYS, 1, 6)
    assert torch.equal(stratum_given(conditions, 3, KEYS[7:9], 1, 6), given[7:9])
    assert not torch.equal(stratum_given(conditions, 3, KEYS, 0, 6), given)
    assert not torch.equal(stratum_given(conditions, 4, KEYS, 1, 6), given)


def test_a_training_sample_is_a_function_of_its_position_and_row():
    conditions, shapes = [Condition("first", 0.3), Condition("any", 0.5)], {LATENTS: (1, 4, 2, 2)}
    noise, sigmas = training_noise(FLOW, 0, 5, range(8), shapes, conditions=conditions)
    part, same = training_noise(FLOW, 0, 5, range(4, 8), shapes, conditions=conditions)
    assert torch.equal(part[LATENTS], noise[LATENTS][4:])
    assert torch.equal(same[LATENTS], sigmas[LATENTS][4:])


def test_first_frames_by_share_are_what_they_were_before_there_were_other_conditions():
    """Bit by bit: runs that go on, and curves that are compared."""
    share, num_frames = 0.3, 4
    assert torch.equal(
        stratum_given([Condition(share=share)], 0, KEYS, 1, num_frames),
        torch.stack([stratum_draws(0, KEYS, 1) < share, *[torch.zeros(len(KEYS)) > 0] * 3], dim=1),
    )
    noise, sigmas = training_noise(FLOW, 1, 2, range(50), {LATENTS: (1, 4, 1, 1)}, conditions=[Condition(share=share)])
    generators = [stream_generator("train", LATENTS, 1, 2, row) for row in range(50)]
    expected = FLOW.at(4).quantile(torch.cat([torch.rand(1, generator=each) for each in generators]))
    is_given = torch.cat([torch.rand(1, generator=each) for each in generators]) < share
    assert torch.equal(sigmas[LATENTS][:, 0], torch.where(is_given, 0.0, expected))
    assert torch.equal(sigmas[LATENTS][:, 1:], expected[:, None].expand(-1, 3))
    assert torch.equal(noise[LATENTS], torch.stack([torch.randn(1, 4, 1, 1, generator=each) for each in generators]))


def test_given_frames_have_no_noise_and_the_others_all_of_it():
    sigmas = stratum_sigmas(FLOW, KEYS[:2], [8, 8], 1)[:, 0]
    given = torch.tensor([[True, False, True], [False, False, False]])
    assert torch.equal(without_noise(sigmas, given), torch.stack([sigmas[0] * ~given[0], sigmas[1].expand(3)]))


def test_given_frames_are_put_in_their_places_and_no_others():
    latents, clean = torch.randn(2, 3, 4, 2, 2), torch.randn(2, 3, 4, 2, 2)
    given = GivenFrames(clean, torch.tensor([[True, False, False, True], [False, True, False, False]]))
    put = given.put_into(latents)
    assert torch.equal(put[0, :, ::3], clean[0, :, ::3])
    assert torch.equal(put[0, :, 1:3], latents[0, :, 1:3])
    assert torch.equal(put[1, :, 1], clean[1, :, 1])


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match=r"share of last is 1\.5"):
        Condition("last", 1.5)
    with pytest.raises(UserError, match="frames is 0"):
        Condition(0)
    with pytest.raises(UserError, match=r"sum to 1\.2"):
        check_conditions([Condition(share=0.7), Condition("any", 0.5)])


def test_a_reference_goes_with_other_conditions_and_is_none_of_them():
    given = (Condition("reference"), Condition("first", 0.6), Condition("last", 0.4))
    check_conditions(of_own_frames(given))
    assert of_own_frames(given) == given[1:]
    assert reads_references(given)
    assert not reads_references(given[1:])
    assert not reads_references(None)
    with pytest.raises(UserError, match=r"the share of reference is 0\.5: every sample has its reference"):
        Condition("reference", 0.5)
