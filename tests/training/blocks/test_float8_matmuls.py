"""Products in float8: torch multiplies so on a CPU, too, by the same code as on a GPU, slowly."""

import re
import sys

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.models.batches import batch_of
from tests.test_fit import read_metrics
from tests.training.blocks.test_cast_once import linear_layers, loss_of
from vidlit.__main__ import main
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA
from vidlit.models.family import open_family
from vidlit.runs.checkpoint_files import AtomicCheckpointIO
from vidlit.training.blocks import float8_matmuls
from vidlit.training.blocks.compiling import compile_blocks
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.blocks.sharding import shard
from vidlit.training.memory import Memory

CPU = torch.device("cpu")
RANK = 4


@pytest.fixture(scope="module")
def family(demo):
    return open_family(demo.dir / "base", 16)


@pytest.fixture(scope="module")
def batch(family):
    return batch_of(family, (9, 48, 80))  # 90 tokens: no multiple of 16


@pytest.fixture
def small(monkeypatch):
    """Layers of tiny models count as large ones; a LoRA's do not."""
    monkeypatch.setattr("vidlit.training.blocks.float8_matmuls._SMALLEST", 8)


class Products(TorchDispatchMode):
    """Counts products in float8: of torchao's tensors, or of plain ones where they are compiled."""

    def __init__(self):
        super().__init__()
        self.in_float8 = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten, kind = torch.ops.aten, type(args[0]).__name__ if args else ""
        self.in_float8 += func is aten._scaled_mm.default
        self.in_float8 += func is aten.mm.default and kind == "Float8TrainingTensor"
        return func(*args, **(kwargs or {}))


def transformer_of(family, lora, **options):
    torch.manual_seed(0)
    transformer = family.load_transformer().train()
    if lora:
        LoRA(rank=RANK, alpha=RANK).apply(transformer, family)
    options = {"gradient_checkpointing": False, **options}
    memory = Memory("bfloat16" if lora else "float32", **options)
    memory.apply(transformer, CPU, trains_in_bfloat16=False, trains_whole=not lora)
    return transformer


def step(family, batch, transformer):
    """Loss and gradients."""
    torch.manual_seed(0)
    loss = loss_of(family, transformer, batch)
    loss.backward()
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert {parameter.grad.dtype for parameter in trained} == {torch.float32}
    return loss.detach(), torch.cat([parameter.grad.flatten() for parameter in trained])


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("lora", [False, True])
def test_losses_and_gradients_are_near_those_in_bfloat16(family, batch, lora):
    plain, rounded = transformer_of(family, lora), transformer_of(family, lora, float8_matmuls=True)
    loss, gradients = step(family, batch, plain)
    with Products() as products:
        found, found_gradients = step(family, batch, rounded)
    assert found != loss
    torch.testing.assert_close(found, loss, rtol=2e-3, atol=0)  # measured: 5e-4
    assert (found_gradients - gradients).norm() < 0.06 * gradients.norm()  # measured: 0.036
    layers = [each for each in linear_layers(rounded) if type(each).__name__ == "Float8InTraining"]
    assert len(layers) == len([each for each in linear_layers(plain) if RANK not in each.weight.shape])
    # What a layer gives, the gradient of its input, that of its weight. Under a LoRA the first block's input and the
    # prompt, which attention's queries, keys and values are of, have no gradient, and frozen weights have none.
    expected = 2 * len(layers) - 3 - 2 * len(repeated_blocks(rounded)) if lora else 3 * len(layers)
    assert products.in_float8 == expected


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("lora", [False, True])
def test_checks_and_samples_multiply_as_ever_and_names_stay(family, batch, lora):
    plain, rounded = transformer_of(family, lora).eval(), transformer_of(family, lora, float8_matmuls=True).eval()
    assert plain.state_dict().keys() == rounded.state_dict().keys()
    assert all(torch.equal(value, rounded.state_dict()[name]) for name, value in plain.state_dict().items())
    with Products() as products, torch.no_grad():
        assert torch.equal(loss_of(family, rounded, batch), loss_of(family, plain, batch))
    assert products.in_float8 == 0


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("lora", "options"),
    [
        (False, {"gradient_checkpointing": True}),
        (False, {"cast_once": True}),
        (True, {"gradient_checkpointing": 0.5}),
        (True, {"gradient_checkpointing": True, "swap_blocks": 3}),
    ],
)
def test_it_goes_with_the_other_options_to_the_bit(family, batch, lora, options):
    alone = step(family, batch, transformer_of(family, lora, float8_matmuls=True))
    together = step(family, batch, transformer_of(family, lora, float8_matmuls=True, **options))
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("lora", [False, True])
def test_compiled_blocks_multiply_in_float8(family, batch, lora, recwarn):
    alone = step(family, batch, transformer_of(family, lora, float8_matmuls=True))
    compiled = transformer_of(family, lora, float8_matmuls=True, gradient_checkpointing=True)
    torch._dynamo.reset()
    compile_blocks(compiled, "aot_eager")
    with Products() as products:
        together = step(family, batch, compiled)
    assert products.in_float8 > 0
    assert not [each for each in recwarn if "without torch.compile" in str(each.message)]
    torch.testing.assert_close(together[0], alone[0], rtol=1e-4, atol=0)
    assert (together[1] - alone[1]).norm() < 0.01 * alone[1].norm()


@pytest.mark.usefixtures("small")
def test_few_rows_and_odd_sizes_are_left_alone(family):
    transformer = family.load_transformer()
    block = transformer.transformer_blocks[0]
    block.attn1.to_out[0], block.attn1.to_q = nn.Linear(128, 24), nn.Linear(128, 8)
    with pytest.warns(
        UserWarning, match="38 linear layers multiply in float8.*; 1 of these has a size that is no mult"
    ):
        Memory(float8_matmuls=True).apply(transformer, CPU, trains_in_bfloat16=False)
    assert type(block.attn1.to_out[0]) is type(block.attn1.to_q) is nn.Linear
    layer = block.attn1.to_k.train()
    with Products() as products:
        layer(torch.randn(2, 4, 128))
        assert products.in_float8 == 0
        layer(torch.randn(3, 3, 128))
    assert products.in_float8 == 1


def test_layers_that_are_too_small_to_gain_anything_are_said(family):
    with pytest.warns(UserWarning, match="float8_matmuls: 0 linear layers"):
        transformer_of(family, False, float8_matmuls=True)


@pytest.mark.parametrize("dtype", ["int8", "float8", "nf4"])
def test_weights_in_fewer_bits_are_refused(dtype):
    with pytest.raises(UserError, match=f"float8_matmuls and base_dtype {dtype} exclude each other"):
        Memory(dtype, float8_matmuls=True)


def test_devices_that_cannot_are_refused(family, monkeypatch):
    memory = Memory(float8_matmuls=True, compile=False)
    with pytest.raises(UserError, match="this device mps does not multiply in float8"):
        memory.apply(family.load_transformer(), torch.device("mps"), trains_in_bfloat16=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA GeForce RTX 3090")
    with pytest.raises(UserError, match=re.escape("this NVIDIA GeForce RTX 3090 does not multiply in float8")):
        memory.apply(family.load_transformer(), torch.device("cuda"), trains_in_bfloat16=False)


def test_without_torchao_it_says_what_to_install(family, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(UserError, match=r"float8_matmuls needs torchao: pip install 'vidlit\[quantize\]'"):
        transformer_of(family, False, float8_matmuls=True)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("lora", [False, True])
def test_a_fit_goes_on_where_it_was_and_leaves_plain_weights(quickstart, tmp_path, lora):
    adapter = {"model__adapter__rank": RANK, "model__memory__base_dtype": "bfloat16"} if lora else {}
    options = {"trainer__precision": "bf16-mixed", "trainer__val_check_interval": 3, **adapter}
    rounded = {**options, "model__memory__float8_matmuls": True}
    for name, given in (("plain", options), ("whole", rounded)):
        assert main(quickstart(run__name=name, trainer__max_steps=6, **given)) == 0
    assert main(quickstart(run__name="cut", trainer__max_steps=3, **rounded)) == 0
    assert main([*quickstart(run__name="cut", trainer__max_steps=6, **rounded), "--ckpt_path=last"]) == 0

    plain, whole, cut = (tmp_path / "runs" / name / "0" for name in ("plain", "whole", "cut"))
    states = [AtomicCheckpointIO().load_checkpoint(run / "checkpoints/last.ckpt") for run in (plain, whole, cut)]
    states = [each["state_dict"] for each in states]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert {type(value) for value in states[1].values()} == {torch.Tensor}
    assert all(torch.equal(value, states[2][name]) for name, value in states[1].items())
    assert not all(torch.equal(value, states[0][name]) for name, value in states[1].items())
    losses = [list(read_metrics(run, "val/loss").values())[-1] for run in (plain, whole)]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    file = "pytorch_lora_weights" if lora else "transformer/diffusion_pytorch_model"
    exported = [load_file(run / f"weights/{file}.safetensors") for run in (plain, whole)]
    shapes = [{name: (value.shape, value.dtype) for name, value in each.items()} for each in exported]
    assert shapes[0] == shapes[1]
    if not lora:
        diffusers.LTXVideoTransformer3DModel.from_pretrained(whole / "weights/transformer")


def sharded_step(rank, places, expected):
    """In a process of its own: losses and gradients of weights that two ranks share."""
    float8_matmuls._SMALLEST = 8
    torch.distributed.init_process_group("gloo", f"file://{places}/ranks", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    family = open_family(places / "base", 16)
    transformer = transformer_of(family, False, float8_matmuls=True, gradient_checkpointing=True)
    shard(transformer, mesh, "float32", low_precision=True)
    assert {type(each) for each in transformer.parameters()} == {DTensor}
    torch.manual_seed(0)
    loss = loss_of(family, transformer, batch_of(family, (9, 48, 80)))
    loss.backward()
    gradients = torch.cat([each.grad.full_tensor().flatten() for each in transformer.parameters()])
    torch.testing.assert_close(loss.detach(), expected[0], rtol=2e-3, atol=0)
    assert (gradients - expected[1]).norm() < 0.05 * expected[1].norm()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_ranks_that_share_weights_multiply_in_float8(demo, family, batch, tmp_path):
    expected = step(family, batch, transformer_of(family, False, float8_matmuls=True))
    (tmp_path / "base").symlink_to(demo.dir / "base")
    torch.multiprocessing.spawn(sharded_step, (tmp_path, expected), nprocs=2)
