from vidlit.diffusion.streams import LATENTS, Stream
from vidlit.models.parts import Expert, Part, parts_of

EXPERTS = Expert("transformer", 0.875, "high"), Expert("transformer_2", 0.0, "low")
STREAMS = Stream(title="video"), Stream("audio_latents", 0.5, "audio", r"audio_|video_to_audio")
NAMES = [
    "transformer.blocks.0.attn1.to_q.weight",
    "transformer.blocks.0.audio_attn1.to_q.weight",
    "transformer.blocks.0.video_to_audio_attn.to_q.weight",
    "transformer_2.blocks.0.attn1.to_q.weight",
    "averaged.transformer/blocks/0/attn1/to_q/weight",
    "averaged.transformer_2/blocks/0/attn1/to_q/weight",
]


def test_most_models_have_one_part_that_owns_everything():
    (part,) = parts_of((Expert(),), (Stream(),))
    assert part == Part()
    assert (part.name, part.stream, part.sigmas) == ("all", LATENTS, (0.0, 1.0))
    assert all(map(part.owns, NAMES))


def test_experts_share_out_the_noise_levels_and_own_a_transformer_each():
    high, low = parts_of(EXPERTS, (Stream(),))
    assert (high.name, high.expert, high.sigmas) == ("high", "transformer", (0.875, 1.0))
    assert (low.name, low.expert, low.sigmas) == ("low", "transformer_2", (0.0, 0.875))
    assert [name for name in NAMES if low.owns(name)] == [NAMES[3], NAMES[5]]
    assert [name for name in NAMES if high.owns(name)] == [NAMES[0], NAMES[1], NAMES[2], NAMES[4]]


def test_streams_share_a_transformer_and_its_layers():
    video, audio = parts_of((Expert(),), STREAMS)
    assert (video.name, video.stream, video.loss_weight) == ("video", LATENTS, 1.0)
    assert (audio.name, audio.stream, audio.loss_weight) == ("audio", "audio_latents", 0.5)
    assert video.sigmas == audio.sigmas == (0.0, 1.0)
    of_audio = [name for name in NAMES if audio.owns(name)]
    assert of_audio == NAMES[1:3]
    assert [name for name in NAMES if video.owns(name)] == [name for name in NAMES if name not in of_audio]
