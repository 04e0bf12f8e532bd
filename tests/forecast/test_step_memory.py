"""The forecast against an H100 and against real tensors of small models."""

import gc
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from lightning.pytorch import LightningModule
from torch._subclasses.fake_tensor import FakeTensor

from benchmarks.memory_measured import MEASURED, forecast
from benchmarks.published import write_published
from benchmarks.random_bases import random_transformer
from tests.models.bases import EVERY, size_of
from vidlit.forecast.cuda_autocast import cuda_autocast
from vidlit.forecast.memory_forecast import RunSetting, adjusted, in_buckets, mixed, training_peak
from vidlit.forecast.phases import decode_clips
from vidlit.forecast.sample_shapes import sample_batch
from vidlit.forecast.step_memory import CannotRunError, StepMemory, StepSetting, run_steps, step_memory
from vidlit.forecast.tensor_memory import ACTIVATIONS, GRADIENTS, MOMENTS, TRAINED, Held, TensorMemory
from vidlit.models.adapters import LoRA
from vidlit.models.family import open_family
from vidlit.training.averaging import EMA
from vidlit.training.memory import Memory
from vidlit.training.module import VideoDiffusionModule
from vidlit.training.step.preservation import Preservation
from vidlit.video.buckets import Bucket

GB = 1e9
LTX, WAN, COG = "Lightricks/LTX-Video", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "zai-org/CogVideoX-5b"
SIZE = {LTX: "121x480x704", WAN: "49x480x832", COG: "49x480x720"}
loop, at_once = partial(torch.optim.AdamW, foreach=False), torch.optim.AdamW
slow = pytest.mark.slow


class KeepsGradients(VideoDiffusionModule):
    """With the last step's gradients while it goes forward, as Lightning leaves them."""

    optimizer_step = LightningModule.optimizer_step


@pytest.fixture
def wide_stream(monkeypatch):
    """Blocks that give what their tables promote, as they did on the H100."""
    monkeypatch.setattr("vidlit.training.memory.narrow_stream", lambda transformer: None)


def recompute(transformer):
    """Every block as a whole, attention too, as the steps on the H100 were."""
    transformer.enable_gradient_checkpointing()


# What an H100 80GB had allocated at most (torch 2.11, one clip): a plain loop with AdamW over one tensor after the
# other, vidlit with AdamW as it comes, which takes all at once.
@pytest.mark.parametrize(
    ("base", "kind", "optimizer", "lora", "measured"),
    [
        pytest.param(LTX, VideoDiffusionModule, loop, False, 31.78, marks=slow),
        pytest.param(LTX, KeepsGradients, at_once, False, 38.54, marks=slow),
        pytest.param(WAN, VideoDiffusionModule, loop, False, 26.03, marks=slow),
        pytest.param(WAN, KeepsGradients, at_once, False, 28.46, marks=slow),
        (WAN, KeepsGradients, at_once, True, 7.59),
    ],
)
@pytest.mark.usefixtures("wide_stream")
def test_steps_take_what_an_h100_measured(base, kind, optimizer, lora, measured, tmp_path):
    dtype = "bfloat16" if lora else "float32"
    adapter = LoRA(rank=32, alpha=32) if lora else None
    memory = Memory(dtype, gradient_checkpointing=False, cast_once=False)
    module = kind(str(write_published(base, tmp_path)), adapter, optimizer=optimizer, memory=memory)
    steps = step_memory(module, StepSetting(Bucket.parse(SIZE[base]), clip_val=1.0), prepare=recompute)
    assert training_peak(steps).total / GB == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize("row", [pytest.param(row, marks=() if row.lora else slow) for row in MEASURED])
def test_compiled_steps_take_what_an_h200_measured(row):
    assert forecast(row) == pytest.approx(row.gigabytes, rel=0.1)


def test_decoding_takes_what_an_h100_measured(tmp_path):
    family = open_family(write_published(COG, tmp_path))
    assert decode_clips(family, Bucket.parse(SIZE[COG])).total / GB == pytest.approx(16.31, rel=0.03)


def measured(module, setting, **options):
    """The memory of real steps, of real tensors."""
    memory = TensorMemory()
    with memory, cuda_autocast():
        run_steps(module, setting, memory, **options)
    return StepMemory(memory.peaks, [], [])


WAYS = {
    "lora": {"adapter": LoRA(rank=4), "memory": Memory("bfloat16", gradient_checkpointing=False)},
    "recomputed": {"adapter": LoRA(rank=4), "memory": Memory("bfloat16", gradient_checkpointing=True)},
    "in 8 bits": {"adapter": LoRA(rank=4), "memory": Memory("int8", gradient_checkpointing=True)},
    "all weights, averaged": {"ema": EMA(), "memory": Memory(gradient_checkpointing=True)},
}


QUICK = [("ltx_video", "lora"), ("kandinsky5", "all weights, averaged")]


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=() if (name, way) in QUICK else slow)
        for name in (
            "ltx_video",
            "wan-5b",
            "cogvideox",
            "hunyuan_video",
            "hunyuan_video15",
            "kandinsky5",
            "ltx2",
            "mochi",
        )
        for way in WAYS
    ],
)
def test_a_small_model_takes_what_its_real_tensors_do(name, way, tmp_path):
    EVERY[name](tmp_path)
    make = partial(VideoDiffusionModule, str(tmp_path), optimizer=loop, **WAYS[way])
    frames, height, width = size_of(open_family(tmp_path))
    setting = StepSetting(Bucket(frames, 4 * height, 4 * width), 2, 2, accumulate=2, clip_val=1.0, on_gpu=False)
    foretold, real = step_memory(make(), setting, whole=True), measured(make(), setting)
    assert training_peak(foretold).total == pytest.approx(training_peak(real).total, rel=0.03)
    assert foretold.peaks["check"].total == pytest.approx(real.peaks["check"].total, rel=0.03)


def test_a_step_that_preserves_takes_what_its_real_tensors_do(tmp_path):
    """It holds the activations of two passes. Whether a step is one is drawn; the forecast goes by those that are."""
    EVERY["ltx_video"](tmp_path)
    preservation = Preservation(["a place without it"], share=1.0)
    make = partial(VideoDiffusionModule, str(tmp_path), optimizer=loop, **WAYS["lora"])
    setting = StepSetting(Bucket(9, 128, 128), 2, clip_val=1.0, on_gpu=False)
    module = make(preservation=preservation)
    prompt = sample_batch(module.family, setting.bucket, 1).conditioning
    shorter = torch.arange(prompt.prompt_embeds.shape[1])[None] < 9  # a mask is there, as where lengths have no values
    vars(module)["prompt"] = lambda caption: prompt._replace(prompt_attention_mask=shorter, extras={})
    rarely = make(preservation=replace(preservation, share=0.01))
    foretold, real = step_memory(rarely, setting), measured(module, setting)
    assert training_peak(foretold).total == pytest.approx(training_peak(real).total, rel=0.03)
    plain = step_memory(make(), setting)
    assert training_peak(foretold).of(ACTIVATIONS) > 1.8 * training_peak(plain).of(ACTIVATIONS)


@slow
@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_model_of_300_million_weights_takes_what_its_real_tensors_do(lora, recomputed, tmp_path):
    gc.collect()  # gigabytes of the one before
    write_published(LTX, tmp_path)
    config = tmp_path / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_layers": 4}))
    adapter, memory = LoRA(rank=32) if lora else None, Memory("bfloat16" if lora else "float32", recomputed)
    make = partial(VideoDiffusionModule, str(tmp_path), adapter, optimizer=loop, memory=memory)
    setting = StepSetting(Bucket(17, 128, 256), clip_val=1.0, on_gpu=False)
    real_module = make()
    assert sum(each.numel() for each in real_module.structure().parameters()) == pytest.approx(311e6, rel=0.02)
    made_here = partial(random_transformer, real_module.family, device=torch.device("cpu"))
    real_module.family.load_transformer = made_here
    foretold, real = step_memory(make(), setting), measured(real_module, setting)
    kept_foretold = foretold.peaks["batch 0 backward before"].of(ACTIVATIONS)
    kept = real.peaks["batch 1 backward before"].of(ACTIVATIONS)
    assert training_peak(foretold).total == pytest.approx(training_peak(real).total, rel=0.03)
    assert kept_foretold == pytest.approx(kept, rel=0.03)  # weights are most of the peak
    assert foretold.peaks["check"].total == pytest.approx(real.peaks["check"].total, rel=0.03)


@slow
@pytest.mark.parametrize("way", ["lora", "all weights, averaged"])
def test_products_in_float8_take_what_real_ones_do(way, tmp_path, monkeypatch):
    monkeypatch.setattr("vidlit.training.blocks.float8_matmuls._SMALLEST", 8)
    EVERY["ltx_video"](tmp_path)
    options = WAYS[way] | {"memory": replace(WAYS[way]["memory"], float8_matmuls=True)}
    make = partial(VideoDiffusionModule, str(tmp_path), optimizer=loop, **options)
    frames, height, width = size_of(open_family(tmp_path))
    setting = StepSetting(Bucket(frames, 4 * height, 4 * width), 2, 2, clip_val=1.0, on_gpu=False)
    foretold, real = step_memory(make(), setting, whole=True), measured(make(), setting)
    assert training_peak(foretold).total == pytest.approx(training_peak(real).total, rel=0.03)


@slow
@pytest.mark.parametrize("name", ["cogvideox", "ltx2", "kandinsky5"])
def test_no_tensor_without_values_is_left_for_what_comes_after(name, tmp_path):
    EVERY[name](tmp_path)
    module = VideoDiffusionModule(str(tmp_path), LoRA(rank=2), optimizer=loop, memory=Memory())
    frames, height, width = size_of(module.family)
    step_memory(module, StepSetting(Bucket(frames, height, width), on_gpu=False))
    decode_clips(module.family, Bucket(frames, height, width))
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is FakeTensor]


def wan_of(folder, num_layers, **memory):
    """A small Wan of so many blocks; each memory is a small one, with activations as large as weights."""
    from tests.models.bases import wan, wan_transformer

    sizes = {"num_attention_heads": 4, "attention_head_dim": 32, "ffn_dim": 512}
    wan(folder, transformer=wan_transformer(num_layers=num_layers, **sizes))
    return VideoDiffusionModule(str(folder), optimizer=loop, memory=Memory(**memory))


SMALL = StepSetting(Bucket(9, 128, 128), clip_val=1.0, on_gpu=False)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_last_micro_batch_takes_what_whole_steps_do(accumulate, tmp_path):
    setting = replace(SMALL, accumulate=accumulate)
    whole = measured(wan_of(tmp_path, 2, gradient_checkpointing=True), setting)
    last = measured(wan_of(tmp_path, 2, gradient_checkpointing=True), setting, whole_steps=False)
    assert training_peak(last).total == pytest.approx(training_peak(whole).total, abs=2048)
    for kind in (GRADIENTS, MOMENTS, TRAINED):
        assert training_peak(last).of(kind) == training_peak(whole).of(kind)


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param({"gradient_checkpointing": False}, marks=slow),
        {"gradient_checkpointing": True},
        pytest.param({"gradient_checkpointing": 2}, marks=slow),
    ],
)
def test_a_few_blocks_tell_of_all(memory, tmp_path):
    module = wan_of(tmp_path, 12, **memory)
    few, whole = step_memory(module, SMALL), step_memory(module, SMALL, whole=True)
    for stage, held in few.peaks.items():
        if stage.startswith("batch"):
            assert held.total == pytest.approx(whole.peaks[stage].total, rel=0.01), stage
    assert few.num_blocks == [12]


@slow
def test_a_share_of_recomputed_blocks_lies_between_all_and_none(tmp_path):
    none, every, half = (
        step_memory(wan_of(tmp_path / str(number), 12, gradient_checkpointing=number), SMALL) for number in (0, 1, 2)
    )
    assert training_peak(mixed(none, every, 0.5)).total == pytest.approx(training_peak(half).total, rel=0.05)
    assert training_peak(mixed(none, every, 0.5)).total < training_peak(none).total


def test_an_optimizer_of_fewer_bits_keeps_what_real_ones_keep(tmp_path):
    torchao = pytest.importorskip("torchao.optim")
    make = partial(wan_of, num_layers=2)
    module = make(tmp_path)
    module.optimizer = torchao.AdamW8bit
    held = step_memory(module, SMALL, whole=True).peaks["batch 0 optimizer"]
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in _shapes(make(tmp_path))]
    optimizer = torchao.AdamW8bit(parameters)
    for parameter in parameters:
        optimizer.state[parameter] = {
            name: optimizer._new_buffer(parameter, signed)
            for name, signed in (("exp_avg", True), ("exp_avg_sq", False))
        }
    real = sum(_nbytes(value) for state in optimizer.state.values() for value in state.values())
    assert held.of(MOMENTS) == pytest.approx(real, rel=0.03)
    assert held.of(TRAINED) == pytest.approx(held.of(GRADIENTS), rel=0.01)


def _shapes(module):
    module.configure_model()
    return [parameter.shape for parameter in module.trainable_state().values()]


def _nbytes(value):
    if hasattr(value, "tensor_attrs"):
        return sum(getattr(value, name).nbytes for name in value.tensor_attrs)
    return value.nbytes


def test_the_module_stays_as_it_was(tmp_path):
    module = wan_of(tmp_path, 3)
    step_memory(module, SMALL)
    assert not module.is_loaded
    assert module._trainer is None
    module.configure_model()
    assert not any(parameter.is_meta for parameter in module.parameters())


def test_a_model_that_looks_at_values_is_no_error_of_the_forecast(tmp_path):
    def look(transformer):
        transformer.register_forward_pre_hook(lambda *_: torch.unique(torch.zeros(3)))

    with pytest.raises(CannotRunError):
        step_memory(wan_of(tmp_path, 2), SMALL, prepare=look)


def test_a_forecast_that_fails_leaves_nothing_in_the_module(tmp_path):
    module = wan_of(tmp_path, 2)

    def fail(*_):
        raise ValueError("in the backward pass")

    def spoil(transformer):
        transformer.blocks[0].register_forward_hook(lambda block, given, made: made.register_hook(fail) and None)

    with pytest.raises(CannotRunError, match="in the backward pass"):
        step_memory(module, SMALL, prepare=spoil)
    assert module.numbers._waiting == []


@pytest.mark.parametrize(("accumulate", "totals"), [(1, (19.0, 16.0)), (4, (19.0, 24.0))])
def test_buckets_of_several_ranks_hold_gradients_all_the_time(accumulate, totals):
    forward, optimizer = Held({TRAINED: 8.0, ACTIVATIONS: 3.0}), Held({TRAINED: 8.0, GRADIENTS: 8.0})
    steps = StepMemory({"batch 1 forward first": forward, "batch 1 optimizer": optimizer}, [], [])
    held = in_buckets(steps, accumulate).peaks.values()
    assert tuple(each.total for each in held) == totals


def test_shards_hold_a_share_of_all_but_activations(tmp_path):
    setting = RunSetting(Bucket(9, 64, 64), precision="32-true", clip_val=1.0, shards=8)
    module = wan_of(tmp_path, 3)
    steps = step_memory(module, setting)
    alone, shared = steps.peaks["batch 0 optimizer"], adjusted(steps, module, setting).peaks["batch 0 optimizer"]
    for kind in (TRAINED, GRADIENTS, MOMENTS):
        assert shared.of(kind) == pytest.approx(alone.of(kind) / 8)
    assert shared.total < alone.total / 4
