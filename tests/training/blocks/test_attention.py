import pytest
import torch
from torch.nn.attention import SDPBackend

from vidlit.errors import UserError
from vidlit.training.blocks import attention
from vidlit.training.blocks.attention import head_size, prefer_kernel, quickest

H100, A100, BLACKWELL = (9, 0), (8, 0), (10, 0)
CPU, GPU = torch.device("cpu"), torch.device("cuda")
HEADS_OF_128 = {"attention_head_dim": 128}


def order():
    """Torch's kernels that are on, the first to try first."""
    return torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)


@pytest.fixture
def card(monkeypatch):
    """A torch that sees a card; its switches are there without one, too."""

    def made(capability, has=("cudnn", "flash", "efficient", "math")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(
            attention, "_missing", lambda kernel, capability: "" if kernel in has else "it is not there"
        )

    return made


@pytest.mark.parametrize(
    ("config", "channels"),
    [(HEADS_OF_128, 128), ({"axes_dims": [16, 24, 24]}, 64), ({"attention_head_dim": None}, 0), ({}, 0)],
)
def test_channels_of_a_head_stand_in_the_config(config, channels):
    assert head_size(config) == channels


def test_a_cpu_keeps_torchs_own_choice():
    before = order()
    with prefer_kernel("cudnn", HEADS_OF_128, CPU):
        assert order() == before


@pytest.mark.parametrize(
    ("capability", "channels", "first"),
    [(H100, 128, "cudnn"), (H100, 64, "cudnn"), (BLACKWELL, 128, None), (H100, 80, None), (A100, 128, None)],
)
def test_cudnn_is_first_where_it_was_measured_quickest(card, capability, channels, first):
    card(capability)
    assert quickest(channels, capability) == first


def test_flash_attention_3_is_first_where_it_is_there(card):
    card(H100, has=("cudnn", "flash3"))
    assert quickest(128, H100) == "flash3"


def test_without_cudnn_torchs_own_choice_stands(card):
    card(H100, has=("flash",))
    before = order()
    with prefer_kernel("auto", HEADS_OF_128, GPU):
        assert order() == before


@pytest.mark.parametrize(
    ("kernel", "first"),
    [
        ("auto", SDPBackend.CUDNN_ATTENTION),
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("efficient", SDPBackend.EFFICIENT_ATTENTION),
        ("math", SDPBackend.MATH),
    ],
)
def test_a_kernel_is_tried_first_and_the_others_after_it_until_it_is_closed(card, kernel, first):
    card(H100)
    before = order()
    held = prefer_kernel(kernel, HEADS_OF_128, GPU)
    assert order()[0] == first
    assert set(order()) == set(attention._BACKENDS.values())
    held.close()
    assert order() == before


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_trains_while_a_kernel_is_preferred(card, compiled):
    card(H100)
    inputs = [torch.randn(1, 2, 5, 8, requires_grad=True) for _ in range(3)]

    def attend(query, key, value):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value).square().sum()

    expected = torch.autograd.grad(attend(*inputs), inputs)
    run = torch.compile(attend, backend="aot_eager") if compiled else attend
    with prefer_kernel("cudnn", HEADS_OF_128, GPU):
        found = torch.autograd.grad(run(*inputs), inputs)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kernel", "capability", "words"),
    [
        ("flash3", A100, "Hopper"),
        ("flash3", H100, "not installed|does not know"),
        ("cudnn", H100, "no cuDNN"),
        ("flash", H100, "no flash attention"),
    ],
)
def test_kernels_that_are_not_there_are_refused_by_name(monkeypatch, kernel, capability, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    with pytest.raises(UserError, match=rf"model\.attention is {kernel}, but .*({words}).*set it to auto"):
        prefer_kernel(kernel, HEADS_OF_128, GPU)
