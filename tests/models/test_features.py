import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.distance import pdist
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.image.mifid import MemorizationInformedFrechetInceptionDistance

from vidlit.errors import UserError
from vidlit.models.features import FeatureModule, LatentFeatures, VisionFeatures


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [12, 16, 64, 128])
@pytest.mark.parametrize("size", [(2, 3, 5), (5, 4, 4), (13, 15, 22), (1, 8, 8)])
def test_every_resolution_gives_the_same_length(channels, size):
    features = LatentFeatures()(random(2, channels, *size))
    assert features.shape == (2, 256)
    assert features.dtype == torch.float32


def test_projection_keeps_distances():
    latents = random(12, 64, 4, 4, 4)
    exact, projected = pdist(latents.flatten(1).numpy()), pdist(LatentFeatures()(latents).numpy())
    assert abs(projected / exact - 1).max() < 0.2
    assert abs((projected / exact).mean() - 1) < 0.05


def test_no_place_is_ignored():
    latents = random(1, 16, 5, 6, 6)
    for side in (2, 3, 4):
        assert (LatentFeatures()(latents.flip(side)) - LatentFeatures()(latents)).norm() > 1


def test_a_video_depends_on_nothing_but_itself_and_no_generator_moves():
    latents = random(3, 16, 5, 6, 10)
    state = torch.get_rng_state()
    together = LatentFeatures()(latents)
    assert torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([LatentFeatures()(latents[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_latents_are_read_in_single(dtype):
    latents = random(2, 16, 5, 6, 10).to(dtype)
    assert torch.equal(LatentFeatures()(latents), LatentFeatures()(latents.float()))


# -- vision models, tiny and random


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An image model (DINOv2), two video models (VideoMAE, V-JEPA 2) and a text model, in folders."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        T5Config,
        T5EncoderModel,
        VideoMAEConfig,
        VideoMAEModel,
        VJEPA2Config,
        VJEPA2Model,
    )

    tiny = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "dinov2": Dinov2Model(Dinov2Config(**tiny, image_size=28, patch_size=14)),
            "videomae": VideoMAEModel(
                VideoMAEConfig(**tiny, intermediate_size=64, image_size=32, patch_size=16, num_frames=8)
            ),
            "vjepa2": VJEPA2Model(
                VJEPA2Config(
                    **tiny,
                    crop_size=32,
                    patch_size=16,
                    frames_per_clip=8,
                    mlp_ratio=2,
                    pred_hidden_size=24,
                    pred_num_attention_heads=2,
                    pred_num_hidden_layers=1,
                    pred_num_mask_tokens=1,
                )
            ),
            "t5": T5EncoderModel(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)),
        }
    for name, model in made.items():
        model.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize(("name", "times"), [("dinov2", 9), ("videomae", 4), ("vjepa2", 4)])
def test_vision_models_by_folder(models, name, times):
    features = VisionFeatures(str(models / name))
    frames = random(2, 3, 9, 48, 80).clamp(-1, 1)
    found = features(frames)
    assert found.shape == (2, 32)
    assert features._embed(frames).shape == (2, times, 32)
    torch.testing.assert_close(features(frames[1:])[0], found[1], rtol=1e-3, atol=1e-4)
    assert not features._network.training


def test_image_model_sees_each_frame_resized_and_normalised(models):
    from transformers import AutoModel

    network = AutoModel.from_pretrained(models / "dinov2").eval()
    frames = random(1, 3, 2, 48, 80).clamp(-1, 1)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = []
    for time in range(2):
        picture = F.interpolate(frames[:, :, time], (28, 28), mode="bilinear", antialias=True)
        with torch.no_grad():
            expected.append(network(((picture + 1) / 2 - mean) / std).pooler_output)
    found = VisionFeatures(str(models / "dinov2"))(frames)
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2, rtol=1e-4, atol=1e-5)


def test_stills_are_seen(models):
    for name in ("dinov2", "vjepa2"):
        assert VisionFeatures(str(models / name))(random(1, 3, 1, 48, 80)).shape == (1, 32)


def test_models_that_do_not_fit_are_named(models, tmp_path):
    with pytest.raises(UserError, match="not pictures"):
        VisionFeatures(str(models / "t5"))(random(1, 3, 2, 8, 8))
    with pytest.raises(UserError, match="cannot be loaded"):
        VisionFeatures(str(tmp_path))(random(1, 3, 2, 8, 8))


# -- torchmetrics' own metrics over the same features


@pytest.mark.filterwarnings("ignore:Metric `")
def test_torchmetrics_take_them():
    real, made = random(24, 16, 3, 4, 4), random(24, 16, 3, 4, 4, seed=1) + 1
    module = FeatureModule(LatentFeatures(), num_features=256)
    kid = KernelInceptionDistance(feature=module, subsets=4, subset_size=12)
    fid = FrechetInceptionDistance(feature=module)
    mifid = MemorizationInformedFrechetInceptionDistance(feature=module)
    for metric in (kid, fid, mifid):
        metric.update(real, real=True)
        metric.update(made, real=False)
    assert float(kid.compute()[0]) > 1
    assert float(mifid.compute()) >= 0
    content = [LatentFeatures()(videos).double() for videos in (real, made)]
    assert float(fid.compute()) > float((content[0].mean(0) - content[1].mean(0)).square().sum()) * 0.99
