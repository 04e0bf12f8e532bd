"""Preservation: a distance to the base at other captions, drawn by keys."""

from contextlib import contextmanager

import pytest
import torch

from tests.diffusion.test_loss import FLOW, make_batch
from vidlit.diffusion.batch import Conditioning
from vidlit.errors import UserError
from vidlit.training.step.preservation import Preservation, read_captions

CAPTIONS = ["a woman", "a man", "a dog"]


class Adapted:
    """Predicts a multiple of what it is given; the base has another factor. Remembers what it was asked."""

    seed = 3

    def __init__(self, update=0.5):
        self.factor = torch.tensor(update, requires_grad=True)
        self.on, self.asked = True, []

    def __call__(self, noisy, sigmas, conditioning):
        self.asked.append((noisy, conditioning, self.on))
        return noisy * (1 + (self.factor if self.on else 0))

    @contextmanager
    def base_only(self):
        self.on = False
        yield
        self.on = True

    def prompt(self, caption):
        return Conditioning.of([{"prompt_embeds": torch.full((2, 6), float(CAPTIONS.index(caption) + 10))}])


def loss_of(preservation, model, position=0, rows=range(3)):
    batch = make_batch()
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(0))
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    return preservation.loss(model, model, FLOW, batch, noise, sigmas, position, rows), batch, noise, sigmas


def test_the_loss_is_the_distance_to_the_base_at_the_captions_drawn():
    preservation, model = Preservation(CAPTIONS, weight=2.0, share=1.0), Adapted()
    loss, batch, noise, sigmas = loss_of(preservation, model)
    noisy = FLOW.add_noise(batch.latents, noise, sigmas)
    torch.testing.assert_close(loss, 2 * (0.5 * noisy).square().mean())
    loss.backward()
    assert float(model.factor.grad) > 0
    (_, base, on), (_, trained, _) = model.asked
    assert not on
    assert base is trained
    drawn = preservation.draw(3, 0, range(3))
    assert trained.prompt_embeds[:, 0, 0].tolist() == [10.0 + CAPTIONS.index(caption) for caption in drawn]
    assert trained.prompt_attention_mask.sum(1).tolist() == [2, 2, 2]


def test_a_model_that_is_its_base_has_nothing_to_preserve():
    loss, *_ = loss_of(Preservation(CAPTIONS, share=1.0), Adapted(update=0.0))
    assert loss.item() == 0


def test_draws_depend_on_seed_position_and_row_alone():
    preservation = Preservation(CAPTIONS, share=0.5)
    draws = [preservation.draw(0, position, range(8)) for position in range(200)]
    assert 70 < sum(bool(each) for each in draws) < 130
    assert {caption for drawn in draws for caption in drawn} == set(CAPTIONS)
    for position, drawn in enumerate(draws):
        first, second = (preservation.draw(0, position, rows) for rows in (range(4), range(4, 8)))
        assert first + second == drawn, "whatever rank holds them"


def test_most_steps_carry_nothing_at_a_small_share():
    model = Adapted()
    losses = [loss_of(Preservation(CAPTIONS, share=0.01), model, position)[0] for position in range(5)]
    assert losses == [0.0] * 5
    assert model.asked == []


def test_captions_that_are_held_out_are_not_drawn_where_as_many_are_left():
    preservation = Preservation(["a", "b", "c", "d"], share=1.0)
    preservation.held_out = ["a", "c"]
    assert set(preservation.draw(0, 0, range(30))) == {"b", "d"}
    preservation.held_out = ["a", "b", "c"]
    assert preservation.trained == ["a", "b", "c", "d"]


def test_a_file_of_captions_is_read_once(tmp_path):
    path = tmp_path / "captions.txt"
    path.write_text("a woman")
    preservation = Preservation(path, share=1.0)
    path.unlink()
    assert preservation.draw(0, 0, range(2)) == ["a woman"] * 2


def test_captions_may_be_lines_of_a_file(tmp_path):
    (tmp_path / "captions.txt").write_text("a woman\n\n  a man \n")
    assert read_captions(tmp_path / "captions.txt") == ["a woman", "a man"]
    assert Preservation(tmp_path / "captions.txt", share=1.0).draw(0, 0, range(1))[0] in ("a woman", "a man")
    (tmp_path / "latin.txt").write_bytes(b"\xe9t\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        read_captions(tmp_path / "latin.txt")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"captions": []}, "captions is empty"),
        ({"captions": ["a"], "weight": 0.0}, "weight is 0: it must be above 0"),
        ({"captions": ["a"], "share": 1.5}, "share is 1.5"),
    ],
)
def test_options_out_of_range(options, said):
    with pytest.raises(UserError, match=said):
        Preservation(**options)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="cannot be read: No such file"):
        Preservation(tmp_path / "none.txt")
