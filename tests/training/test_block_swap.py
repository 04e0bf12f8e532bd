"""Swapped blocks compute what they do without: losses, gradients and samples, to the bit."""

import pytest
import torch

from tests.models import bases
from tests.models.batches import batch_of
from tests.models.hunyuan_bases import few_glyphs
from vidlit.diffusion.loss import denoising_loss
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA
from vidlit.models.base_folder import read_config
from vidlit.models.family import open_family
from vidlit.training.blocks.block_swap import BUFFERS, swap_last_blocks
from vidlit.training.blocks.kept_dtypes import held_bytes
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule

DEPTHS = ("num_layers", "num_single_layers", "num_visual_blocks")
FAMILIES = ["ltx2", "wan-i2v", "hunyuan_video"]
OTHERS = ["ltx_video", "cogvideox", "mochi", "kandinsky5", "hunyuan_video15"]


@pytest.fixture(scope="module", params=FAMILIES + [pytest.param(each, marks=pytest.mark.slow) for each in OTHERS])
def family(request, tmp_path_factory):
    with few_glyphs():
        yield open_family(bases.EVERY[request.param](tmp_path_factory.mktemp(request.param) / "base"))


def deep(family, memory):
    """A transformer of five blocks or more with a LoRA as if trained."""
    import diffusers

    config = read_config(family.base, "transformer")
    config |= {key: 5 for key in DEPTHS if key in config}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformer = getattr(diffusers, family.transformer_class).from_config(config)
        LoRA(rank=4).apply(transformer, family)
        for parameter in transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    memory.apply(transformer, torch.device("cpu"), trains_in_bfloat16=False)
    return transformer


def three_calls(family, transformer, batch, autocast=False):
    """Losses of a check, of a step, and of a check again, and the step's gradients."""
    noising = family.noising().at(batch.latents[0, 0].numel())
    noise = torch.randn(batch.latents.shape, generator=torch.Generator().manual_seed(4))
    sigmas = noising.quantile(torch.tensor([0.3, 0.7]))

    def loss():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model = lambda *inputs: family.velocity(transformer, *inputs)  # noqa: E731
            return denoising_loss(model, noising, batch, noise, sigmas)

    with torch.no_grad():
        losses = [loss()]
    losses.append(loss())
    losses[-1].mean().backward()
    with torch.no_grad():
        losses.append(loss())
    return losses, [p.grad for p in transformer.parameters() if p.grad is not None]


def check_same(family, memory, batch, autocast=False):
    plain = three_calls(family, deep(family, memory), batch, autocast)
    swapped = deep(family, Memory(**{**vars(memory), "swap_blocks": 4}))
    again = three_calls(family, swapped, batch, autocast)
    for before, after in zip(plain, again, strict=True):
        assert before
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return swapped


@pytest.mark.parametrize("every", [0, 1])
def test_swapped_blocks_give_the_same_losses_and_gradients(family, every):
    batch = batch_of(family, bases.size_of(family))
    transformer = check_same(family, Memory(gradient_checkpointing=every), batch)
    blocks = repeated_blocks(transformer)
    swap = blocks[-1].swap
    assert [hasattr(block, "swap") for block in blocks[-5:]] == [False] + [True] * 4
    kept = {parameter.untyped_storage().data_ptr() for block in blocks[-4:] for parameter in block.parameters()}
    frozen = [p for block in blocks[-4:] for p in block.parameters() if not p.requires_grad]
    assert frozen
    assert {p.untyped_storage().data_ptr() for p in frozen} == {buffer.data_ptr() for buffer in swap._buffers}
    assert len(kept) > len(swap._buffers)  # trained weights have memory of their own


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return open_family(bases.wan(tmp_path_factory.mktemp("wan") / "base"))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8", "nf4"])
def test_weights_in_fewer_bits_are_swapped_as_they_are(wan, dtype):
    check_same(wan, Memory(base_dtype=dtype), batch_of(wan, bases.size_of(wan)), autocast=True)


@pytest.mark.slow
def test_compiled_blocks_are_swapped_outside_what_is_compiled(wan):
    torch.compiler.reset()
    for every in (0, 1):
        memory = Memory(base_dtype="bfloat16", compile=True, gradient_checkpointing=every)
        check_same(wan, memory, batch_of(wan, bases.size_of(wan)), autocast=True)


def test_a_block_is_copied_once_a_pass_and_the_next_one_before_it_runs(wan, monkeypatch):
    transformer = deep(wan, Memory(swap_blocks=5))
    swap = repeated_blocks(transformer)[0].swap
    copied, run = [], []
    copy = type(swap)._copy

    def recorded(self, number):
        before = list(self._holds)
        copy(self, number)
        if self._holds != before:
            copied.append((number, len(run)))

    monkeypatch.setattr(type(swap), "_copy", recorded)
    for number, block in enumerate(swap.blocks):
        module = next(iter(block.parameters))[0]
        module.register_forward_pre_hook(lambda *_, number=number: run.append(number) if torch.is_grad_enabled() else 0)
    for turn in range(2):
        copied.clear(), run.clear()
        batch = batch_of(wan, bases.size_of(wan))
        noise, sigmas = torch.zeros_like(batch.latents), torch.tensor([0.3, 0.7])
        loss = wan.velocity(transformer, noise, sigmas, batch.conditioning).square().mean()
        forward = [number for number, _ in copied]
        loss.backward()
        backward = [number for number, _ in copied[len(forward) :]]
        # The last two are there when the backward pass begins, and the first two when the next step does.
        assert forward == ([0, 1, 2, 3, 4] if turn == 0 else [2, 3, 4])
        assert backward == [2, 1, 0]


def test_swapped_blocks_take_the_memory_of_two(wan):
    def frozen_of(transformer):
        return [p for block in repeated_blocks(transformer) for p in block.parameters() if not p.requires_grad]

    plain, swapped = (frozen_of(deep(wan, Memory(swap_blocks=number))) for number in (0, 5))
    assert held_bytes(swapped) * 5 == held_bytes(plain) * 2


def test_weights_move_with_the_model_and_keep_their_names(wan):
    transformer = deep(wan, Memory(swap_blocks=3))
    names = [name for name, _ in transformer.named_parameters()]
    trained = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    swap, batch = repeated_blocks(transformer)[-1].swap, batch_of(wan, bases.size_of(wan))
    before = three_calls(wan, transformer, batch)
    transformer.zero_grad()
    held = [id(block.chunks) for block in swap.blocks]
    transformer.to("meta")
    assert {parameter.device.type for parameter in transformer.parameters()} == {"meta"}
    assert {chunk.device.type for block in swap.blocks for chunk in block.chunks} == {"cpu"}
    assert [id(block.chunks) for block in swap.blocks] == held
    assert [name for name, _ in transformer.named_parameters()] == names
    assert {name for name, parameter in transformer.named_parameters() if parameter.requires_grad} == trained
    again = deep(wan, Memory(swap_blocks=3))
    again.to("cpu")
    after = three_calls(wan, again, batch)
    assert all(torch.equal(one, other) for one, other in zip(before[1], after[1], strict=True))


def test_weights_wait_in_main_memory_wherever_models_are_made(wan):
    transformer = wan.load_transformer().requires_grad_(False)
    with torch.device("meta"):  # as Lightning has it be the GPU
        swap_last_blocks(transformer, 2)
    chunks = [chunk for weights in repeated_blocks(transformer)[-1].swap.blocks for chunk in weights.chunks]
    assert {chunk.device.type for chunk in chunks} == {"cpu"}


@pytest.mark.parametrize("number", [-1, 1, BUFFERS])
def test_as_many_as_are_always_on_the_device_are_refused(number):
    with pytest.raises(UserError, match=f"swap_blocks is {number}: it is auto, 0 for none, or a number above 2"):
        Memory(swap_blocks=number)


def test_more_blocks_than_there_are_and_a_model_without_frozen_weights_are_refused(wan):
    with pytest.raises(UserError, match="swap_blocks is 3, but the transformer has 2 blocks"):
        swap_last_blocks(wan.load_transformer().requires_grad_(False), 3)
    with pytest.raises(UserError, match="swap_blocks is for weights that are not trained"):
        VideoDiffusionModule(str(wan.base), memory=Memory(swap_blocks=3))
    VideoDiffusionModule(str(wan.base), memory=Memory(swap_blocks="auto"))


@pytest.mark.parametrize(
    "option",
    ["--model.adapter.rank=4", pytest.param(r"--model.layers=transformer_blocks\.\d\.attn1", marks=pytest.mark.slow)],
)
def test_a_run_with_swapped_blocks_is_the_run_without(quickstart, tmp_path, option):
    from safetensors.torch import load_file

    from vidlit.__main__ import main

    words = [option, "--overfit_stopping.restore=last", "--model.memory.gradient_checkpointing=true"]
    found = []
    for name, more in (("plain", []), ("swapped", ["--model.memory.swap_blocks=4"])):
        assert main([*quickstart(trainer__max_steps=4, run__name=name), *words, *more]) == 0
        run = tmp_path / "runs" / name / "0"
        file = sorted((run / "weights").rglob("*.safetensors"))[-1]
        held = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        found.append((load_file(file), held))
    for before, after in zip(*found, strict=True):
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())
