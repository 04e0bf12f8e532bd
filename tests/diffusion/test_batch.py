import torch
from lightning.fabric.utilities import move_data_to_device

from vidlit.diffusion.batch import Conditioning, LatentSample, collate


def test_rows_and_keys_stay_where_the_cpu_reads_them():
    """Or each callback that counts clips would wait for the GPU."""
    latents, extras = torch.ones(1, 2, 2, 2), {"pooled": torch.ones(2)}
    samples = [LatentSample(latents, torch.ones(length, 4), 7, 9, extras) for length in (3, 2)]
    batch = collate(samples)
    moved = move_data_to_device(batch, torch.device("meta"))  # as Lightning moves it
    assert {tensor.device.type for tensor in (moved.latents, moved.conditioning.prompt_embeds)} == {"meta"}
    assert moved.conditioning.prompt_attention_mask.tolist() == [[True, True, True], [True, True, False]]
    assert moved.conditioning.mask_for(torch.device("meta"), torch.float32).device.type == "meta"
    assert moved.conditioning.extras["pooled"].device.type == "meta"
    assert (moved.indices.tolist(), moved.keys.tolist()) == ([7, 7], [9, 9])


def test_there_is_no_mask_where_no_prompt_is_padded():
    """Attention is faster without one, and after this the mask is not looked at again."""
    prompts = [{"prompt_embeds": torch.full((length, 4), float(length))} for length in (3, 3, 2)]
    assert Conditioning.of(prompts[:2]).prompt_attention_mask is None
    assert Conditioning.of(prompts[:2]).prompt_lengths == [3, 3]
    assert Conditioning.of(prompts[:2], prompt_length=4).prompt_lengths == [3, 3]
    padded = Conditioning.of(prompts)
    assert padded.prompt_lengths == [3, 3, 2]
    assert padded.of_rows([0, 1]).prompt_attention_mask is None
    short = padded.of_rows([2]).trimmed()
    assert short.prompt_attention_mask is None
    assert short.prompt_embeds.tolist() == [[[2.0] * 4] * 2]
    assert padded.trimmed() is padded
