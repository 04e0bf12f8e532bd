"""Attention by each of torch's kernels, forward and backward in bfloat16, at the sizes of real models, on one GPU.

    python benchmarks/attention_kernels.py
    python benchmarks/attention_kernels.py --small      # tiny, on a CPU: does it run?

TFLOP/s count two matrix products forward and five backward. `model.attention: auto` goes by these.
"""

import argparse
import time

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

SIZES = {
    "Wan 2.1 1.3B, 49x480x832": (12, 20280, 20280, 128),
    "LTX-Video 2B, 121x480x704": (32, 5280, 5280, 64),
    "the same, to the prompt": (32, 5280, 128, 64),
}
"""Heads, tokens that ask, tokens that are asked, channels of a head."""
KERNELS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def milliseconds(kernel: SDPBackend, size: tuple[int, int, int, int], masked: bool, device: torch.device) -> float:
    """Of one forward and backward pass."""
    heads, asking, asked, channels = size
    made = {"device": device, "dtype": torch.bfloat16}
    inputs = [torch.randn(1, heads, n, channels, **made).requires_grad_() for n in (asking, asked, asked)]
    mask = torch.zeros(1, 1, 1, asked, **made).expand(1, heads, asking, asked) if masked else None

    def run() -> tuple[Tensor, ...]:
        attended = scaled_dot_product_attention(*inputs, attn_mask=mask)
        return torch.autograd.grad(attended, inputs, torch.ones_like(attended))

    with sdpa_kernel(kernel):
        run(), run()
        wait(device)
        began = time.perf_counter()
        for _ in range(5):
            run()
        wait(device)
    return 1000 * (time.perf_counter() - began) / 5


def wait(device: torch.device) -> None:
    """Until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main(words: list[str] | None = None) -> list[dict]:
    """Print the table; return its rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny")
    small = parser.parse_args(words).small
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not small:
        raise SystemExit("no GPU is here: --small runs tiny sizes on the CPU.")
    rows = []
    print("| attention | mask | kernel | ms | TFLOP/s |\n|---|---|---|---|---|")
    for name, size in SIZES.items():
        heads, asking, asked, channels = size = (2, 16, 16, 8) if small else size
        for masked in (False, True):
            for kernel, backend in KERNELS.items():
                row = {"attention": name, "mask": masked, "kernel": kernel}
                try:
                    row["ms"] = round(milliseconds(backend, size, masked, device), 3)
                    row["TFLOP/s"] = round(7 * 2e-9 * heads * asking * asked * channels / row["ms"], 1)
                except RuntimeError as error:
                    row |= {"ms": "refused", "TFLOP/s": str(error).splitlines()[0][:60]}
                print("| " + " | ".join(map(str, row.values())) + " |", flush=True)
                rows.append(row)
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return rows


if __name__ == "__main__":
    main()
