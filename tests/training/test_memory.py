import copy
import subprocess
import sys

import pytest
import torch

from tests.models.batches import batch_of
from vidlit.diffusion.loss import denoising_loss
from vidlit.errors import UserError
from vidlit.models.adapters import LoRA, train_layers, without_adapter
from vidlit.models.family import open_family
from vidlit.training.blocks.kept_dtypes import held_bytes, store_frozen
from vidlit.training.blocks.repeated import repeated_blocks
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.peak_memory import peak_memory


@pytest.fixture(scope="module")
def family(demo):
    return open_family(demo.dir / "base", 16)


@pytest.fixture(scope="module")
def batch(family):
    return batch_of(family, (9, 48, 80))


def adapted(family):
    transformer = family.load_transformer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LoRA(rank=4).apply(transformer, family)
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:  # zero at first, and so would lora_A's gradients be
                torch.nn.init.normal_(parameter, std=0.02)
    return transformer


def gradients(family, transformer, batch, autocast=False):
    """Of the trained weights, as one vector."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch.latents.shape, generator=generator)
    sigmas = torch.full((len(noise),), 0.5)

    def model(*inputs):
        return family.velocity(transformer, *inputs)

    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        denoising_loss(model, family.noising(), batch, noise, sigmas).mean().backward()
    trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}
    return torch.cat([parameter.grad.flatten() for parameter in trained])


def bytes_of_blocks(transformer):
    frozen = [p for block in repeated_blocks(transformer) for p in block.parameters() if not p.requires_grad]
    return held_bytes(frozen)


@pytest.mark.parametrize(
    ("dtype", "share", "error"),
    [("bfloat16", 0.5, 0.03), ("int8", 0.3, 0.05), ("float8", 0.3, 0.15), ("nf4", 0.18, 0.3)],
)
def test_a_frozen_base_in_fewer_bits_trains_the_same_adapter(family, batch, dtype, share, error):
    """Rounding of 8, 7 and 3 binary digits a weight, or to 16 levels; the adapter itself stays in float32."""
    whole = adapted(family)
    expected, size = gradients(family, whole, batch), bytes_of_blocks(whole)
    small = adapted(family)
    store_frozen(small, dtype)
    assert bytes_of_blocks(small) <= share * size
    found = gradients(family, small, batch)
    assert (found - expected).norm() < error * expected.norm()
    assert not torch.equal(found, expected)


def test_weights_in_four_bits_are_copied_and_moved_as_they_are(family, batch):
    small = adapted(family)
    store_frozen(small, "nf4")
    layer = small.transformer_blocks[0].attn1.to_q
    assert type(layer.base_layer.weight.data).__name__ == "NF4Tensor"
    expected = gradients(family, small, batch)
    small.zero_grad()
    again = copy.deepcopy(small)
    assert torch.equal(gradients(family, again, batch), expected)
    again.to("meta")
    assert {parameter.device.type for parameter in again.parameters()} == {"meta"}
    with torch.no_grad(), without_adapter([small]):
        off = layer(torch.ones(1, 128))
    torch.testing.assert_close(off, torch.nn.functional.linear(torch.ones(1, 128), layer.base_layer.weight, layer.bias))


def test_chosen_layers_are_trained_in_float32_and_the_rest_kept_in_bfloat16(family, batch):
    transformer = family.load_transformer()
    train_layers(transformer, r"transformer_blocks\.[01]\.attn1")
    store_frozen(transformer, "bfloat16")
    trained = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert trained
    assert all(name.startswith(("transformer_blocks.0.attn1.", "transformer_blocks.1.attn1.")) for name in trained)
    assert gradients(family, transformer, batch, autocast=True).any()  # as the module's forward does


def test_a_pattern_that_matches_nothing_says_what_names_look_like(family):
    with pytest.raises(UserError, match=r"matches no module with weights. Names look like .*to_q|proj_in"):
        train_layers(family.load_transformer(), "attention")
    with pytest.raises(UserError, match="is not a valid pattern"):
        train_layers(family.load_transformer(), "(")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"adapter": LoRA(), "layers": "x"}, "exclude each other"),
        ({"memory": Memory(base_dtype="int8")}, "all are"),
        ({"caption_dropout": 1.0}, "below 1"),
        ({"adapter": LoRA(variant="dora"), "memory": Memory(base_dtype="nf4")}, "dora reads the lengths"),
    ],
)
def test_options_that_contradict_each_other_are_refused(demo, options, words):
    with pytest.raises(UserError, match=words):
        VideoDiffusionModule(str(demo.dir / "base"), fps=16, **options)


@pytest.mark.parametrize(("device", "recomputes", "compiles"), [("cpu", False, False), ("cuda", True, True)])
def test_what_is_left_open_goes_by_the_device(device, recomputes, compiles):
    settled = Memory(base_dtype="bfloat16", swap_blocks="auto", tiled_decoding="auto").settled(torch.device(device))
    assert settled == Memory("bfloat16", recomputes, compiles, cast_once=device == "cuda")
    chosen = Memory(gradient_checkpointing=0.25, compile=not compiles, cast_once=not compiles)
    assert chosen.settled(torch.device(device)) == chosen


@pytest.mark.parametrize("share", [-1, 1.5, -0.1])
def test_a_share_of_the_blocks_is_between_none_and_all(share):
    with pytest.raises(UserError, match="gradient_checkpointing is"):
        Memory(gradient_checkpointing=share)


@pytest.mark.slow
def test_compiled_blocks_compute_the_same(demo, family, batch):
    modules = [
        VideoDiffusionModule(str(demo.dir / "base"), fps=16, memory=Memory(compile=compiled))
        for compiled in (False, True)
    ]
    found = []
    for module in modules:
        module.configure_model()
        found.append(gradients(family, module.transformer, batch))
        assert all("_orig_mod" not in name for name in module.state_dict())
    assert all("forward" in vars(block) for block in repeated_blocks(modules[1].transformer))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


def test_peak_memory_is_this_process_and_not_the_one_that_started_it():
    """The system's own number of a child begins at what its parent had."""
    here = torch.zeros(2**28)  # a GB, all of it touched
    assert peak_memory(here.device) > here.nbytes
    code = "from vidlit.training.peak_memory import peak_memory; import torch; print(peak_memory(torch.device('cpu')))"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert 1e8 < float(child.stdout) < here.nbytes


@pytest.mark.parametrize(
    ("variant", "dtype", "apart"),
    [
        ("dora", "bfloat16", 0.01),
        ("dora", "int8", 0.012),
        ("lokr", "int8", 0.015),
        ("lokr", "nf4", 0.2),
        ("tlora", "nf4", 0.17),
    ],
)
def test_every_adapter_trains_on_a_base_in_fewer_bits(family, batch, variant, dtype, apart):
    found = []
    for kept in ("float32", dtype):
        transformer = family.load_transformer()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            LoRA(rank=4, variant=variant).apply(transformer, family)
            for parameter in transformer.parameters():
                if parameter.requires_grad and not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.02)
        store_frozen(transformer, kept)
        found.append(gradients(family, transformer, batch, autocast=kept != "float32"))
    assert (found[1] - found[0]).norm() < apart * found[0].norm()
