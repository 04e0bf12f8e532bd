import pytest
import torch

from vidlit.diffusion.batch import Conditioning, LatentBatch
from vidlit.models.adapters import LoRA
from vidlit.models.base_folder import read_config
from vidlit.training.flops import flops_of_a_sample, peak_flops
from vidlit.training.module import VideoDiffusionModule


def make_batch(shape, length, prompt_width, size=3):
    conditioning = Conditioning(torch.zeros(size, length, prompt_width), torch.ones(size, length, dtype=torch.bool), {})
    return LatentBatch(torch.zeros(size, *shape), conditioning, torch.arange(size), torch.arange(size))


@pytest.mark.parametrize(("adapter", "backward"), [(None, 2.0), (LoRA(rank=2), 1.0)])
def test_the_count_against_the_formula_of_the_transformer(demo, adapter, backward):
    """Matrix products: 2 operations a weight and token, and 2 * 2 S S' D for attention; twice that backward.

    With a frozen base backward is once: only what the layers below need is computed, not the weights' gradients.
    """
    module = VideoDiffusionModule(str(demo.dir / "base"), fps=16, adapter=adapter)
    config = read_config(demo.dir / "base", "transformer")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tokens, length = 2 * 4 * 6, 7
    in_block = 2 * tokens * width * width * (4 + 2 + 8) + 2 * length * config["cross_attention_dim"] * width * 2
    attention = 4 * tokens * (tokens + length) * width
    forward = config["num_layers"] * (in_block + attention) + 2 * tokens * 2 * config["in_channels"] * width
    batch = make_batch((config["in_channels"], 2, 4, 6), length, config["caption_channels"])
    counted = flops_of_a_sample(module.family, module.structure(), batch)
    assert counted == pytest.approx(forward * (1 + backward), rel=0.08)  # embeddings of time and caption are the rest
    assert module.transformer is None  # nothing was loaded for it


def test_a_cpu_is_measured():
    assert 1e8 < peak_flops(torch.device("cpu"), low_precision=False) < 1e14


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA RTX A6000", 155),
        ("Tesla T4", 65),
        ("Some New Device", None),
    ],
)
def test_gpus_are_found_by_their_names(monkeypatch, name, teraflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    peak = peak_flops(torch.device("cuda", 0), low_precision=True)
    assert peak == (None if teraflops is None else teraflops * 1e12)
