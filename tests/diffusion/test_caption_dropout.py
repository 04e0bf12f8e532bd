import pytest
import torch

from vidlit.diffusion.batch import Conditioning
from vidlit.diffusion.caption_dropout import draw_dropped, drop_captions


def conditioning(rows, length, width=3):
    generator = torch.Generator().manual_seed(rows)
    embeds = torch.randn(rows, length, width, generator=generator)
    return Conditioning(embeds, torch.ones(rows, length, dtype=torch.bool), {"pooled": embeds[:, 0], "first": embeds})


def test_draws_belong_to_the_row_of_the_global_batch():
    whole = torch.stack([draw_dropped(0.3, 5, position, range(8)) for position in range(400)])
    assert 0.27 < whole.float().mean() < 0.33
    halves = [
        torch.stack([draw_dropped(0.3, 5, position, rows) for position in range(400)])
        for rows in (range(4), range(4, 8))
    ]
    assert torch.equal(torch.cat(halves, dim=1), whole)
    assert not torch.equal(draw_dropped(0.3, 6, 0, range(64)), draw_dropped(0.3, 5, 0, range(64)))
    assert not torch.equal(draw_dropped(0.3, 5, 1, range(64)), draw_dropped(0.3, 5, 0, range(64)))


def test_dropped_rows_get_the_empty_prompt_and_keep_what_is_the_clips():
    full, empty = conditioning(3, 4), conditioning(1, 2)
    empty = empty._replace(extras={"pooled": empty.extras["pooled"]})
    made = drop_captions(full, empty, torch.tensor([False, True, False]))
    for row in (0, 2):
        assert torch.equal(made.prompt_embeds[row], full.prompt_embeds[row])
        assert torch.equal(made.extras["pooled"][row], full.extras["pooled"][row])
    assert torch.equal(made.prompt_embeds[1, :2], empty.prompt_embeds[0])
    assert not made.prompt_embeds[1, 2:].any()
    assert made.prompt_attention_mask[1].tolist() == [True, True, False, False]
    assert torch.equal(made.extras["pooled"][1], empty.extras["pooled"][0])
    assert torch.equal(made.extras["first"], full.extras["first"])  # a clip's first frame is no caption


def test_a_longer_empty_prompt_lengthens_the_batch():
    made = drop_captions(conditioning(2, 1), conditioning(1, 3), torch.tensor([True, False]))
    assert made.prompt_embeds.shape == (2, 3, 3)
    assert made.prompt_attention_mask.tolist() == [[True] * 3, [True, False, False]]


@pytest.mark.parametrize(("caption", "empty"), [(4, 2), (2, 4)])
@pytest.mark.parametrize("dropped", [False, True])
def test_one_sample_alone_is_never_padded(caption, empty, dropped):
    given, nothing = conditioning(1, caption), conditioning(1, empty)._replace(extras={})
    made = drop_captions(given, nothing, torch.tensor([dropped])).trimmed()
    assert made.prompt_attention_mask is None
    assert torch.equal(made.prompt_embeds, (nothing if dropped else given).prompt_embeds)
