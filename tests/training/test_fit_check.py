import pytest

from vidlit.errors import UserError
from vidlit.training.fit_check import check_fits

HERE = {"base": "a1", "adapter.rank": "4", "adapter.alpha": "16.0", "ema": "0.99"}
SHAPES = {"lora_A": (4, 8), "lora_B": (8, 4)}


@pytest.mark.parametrize(("option", "there"), [("adapter.alpha", "1.0"), ("base", "b2")])
def test_weights_that_fit_and_mean_something_else_are_refused(option, there):
    """An alpha sixteen times smaller has the same weights say a sixteenth."""
    with pytest.raises(UserError, match=rf"another model: model\.{option}: {there} there, {HERE[option]} here"):
        check_fits(SHAPES, SHAPES, HERE, {**HERE, option: there})


@pytest.mark.parametrize("there", [HERE, {}, {**HERE, "ema": "0.5"}, {"adapter.rank": "4"}])
def test_what_means_the_same_or_is_not_known_goes_on(there):
    check_fits(SHAPES, SHAPES, HERE, there)


def test_weights_that_do_not_fit_are_told_with_the_options_that_differ():
    with pytest.raises(UserError, match=r"1 of 2 trained weights .*lora_A.*model\.adapter\.rank: 8 there, 4 here"):
        check_fits(SHAPES, {**SHAPES, "lora_A": (8, 8)}, HERE, {**HERE, "adapter.rank": "8"})
