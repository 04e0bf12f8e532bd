import logging

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from vidlit.training.blocks.compiling import compile_blocks
from vidlit.training.blocks.recompute import recompute_blocks


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, tokens):
        return tokens + torch.sin(self.linear(tokens))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Block() for _ in range(4))

    def forward(self, tokens):
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def gradients(model, tokens):
    model.zero_grad()
    model(tokens).square().sum().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("share", [False, True, 2])
def test_blocks_of_a_class_share_their_code_and_many_lengths_take_two(share):
    plain, model = Model(), Model()
    recompute_blocks(model, share)
    compile_blocks(model, "aot_eager")
    for length in (4, 5, 6, 9, 17, 30, 4):
        tokens = torch.randn(2, length, 8, requires_grad=True)  # as what comes out of another trained layer
        torch.testing.assert_close(gradients(model, tokens), gradients(plain, tokens))
    classes = len({type(block) for block in model.blocks})
    assert counters["stats"]["unique_graphs"] == 2 * classes  # the first as it is, then one for any
    assert not counters["graph_break"]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), plain(tokens))


def test_hooks_around_a_block_are_not_compiled():
    model, seen = Model(), []
    compile_blocks(model, "aot_eager")
    model.blocks[1].register_forward_pre_hook(lambda *_: seen.append(torch.compiler.is_compiling()))
    for _ in range(3):
        model(torch.randn(1, 4, 8))
    assert seen == [False] * 3
    assert not counters["graph_break"]


def test_names_of_weights_stay():
    model = Model()
    compile_blocks(model, "aot_eager")
    assert list(model.state_dict()) == list(Model().state_dict())


def test_without_a_compiler_blocks_run_as_they_are_and_one_line_says_why(monkeypatch, recwarn):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no_such_compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    plain, model = Model(), Model()
    compile_blocks(model)
    tokens = torch.randn(3, 4, 8)
    for _ in range(2):
        assert torch.equal(gradients(model, tokens), gradients(plain, tokens))
    told = [str(warning.message) for warning in recwarn if "the blocks run" in str(warning.message)]
    assert len(told) == 1
    assert "no_such_compiler" in told[0]
    assert "TORCHDYNAMO" not in told[0]
    assert "\n" not in told[0]


def test_what_fails_in_a_block_itself_is_raised():
    model = Model()
    compile_blocks(model, "aot_eager")
    model(torch.randn(2, 4, 8))
    with pytest.raises(Exception, match=r"shape|size"):
        model(torch.randn(2, 4, 7))


def test_torchs_advice_about_recomputed_blocks_is_not_passed_on(caplog):
    model = Model()
    recompute_blocks(model, True)
    compile_blocks(model, "aot_eager")
    with caplog.at_level(logging.WARNING):
        gradients(model, torch.randn(2, 4, 8))
    assert "context_fn" not in caplog.text
