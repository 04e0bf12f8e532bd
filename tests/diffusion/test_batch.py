import torch
from lightning.fabric.utilities import move_data_to_device

from vidlit.diffusion.batch import LatentSample, collate


def test_rows_and_keys_stay_where_the_cpu_reads_them():
    """Or each callback that counts clips would wait for the GPU."""
    batch = collate([LatentSample(torch.ones(1, 2, 2, 2), torch.ones(3, 4), 7, 9, {"pooled": torch.ones(2)})])
    moved = move_data_to_device(batch, torch.device("meta"))  # as Lightning moves it
    assert {tensor.device.type for tensor in (moved.latents, *moved.conditioning[:2])} == {"meta"}
    assert moved.conditioning.extras["pooled"].device.type == "meta"
    assert (moved.indices.tolist(), moved.keys.tolist()) == ([7], [9])
