"""Parts of tiny bases: models with random weights, and the text encoders and tokenizers that families have."""

import torch
import transformers

DIM = 64
"""Width of the tiny text encoders."""


def seeded(make, *args, **kwargs):
    """A model in eval mode whose weights depend on nothing but its class and config."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make(*args, **kwargs).eval()
        # Zero-initialised layers would hide what they are given.
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return model


def text_config(config_class, **kwargs):
    """Of a T5 or UMT5 that a byte tokenizer fits."""
    sizes = {"vocab_size": 384, "d_model": DIM, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    return config_class(**sizes, feed_forward_proj="gated-gelu", dropout_rate=0.0, **kwargs)


def t5():
    """Tokenizer and text encoder of LTX-Video, CogVideoX, Mochi."""
    encoder = seeded(transformers.T5EncoderModel, text_config(transformers.T5Config))
    return {"tokenizer": transformers.ByT5Tokenizer(), "text_encoder": encoder}


def umt5():
    """Tokenizer and text encoder of Wan."""
    encoder = seeded(transformers.UMT5EncoderModel, text_config(transformers.UMT5Config))
    return {"tokenizer": transformers.ByT5Tokenizer(), "text_encoder": encoder}


def byte_bpe(first, last, text, ended):
    """A byte-level BPE tokenizer trained on the words of a text.

    As that of Llama 3 is, which begins a text, of CLIP, which ends it, too (``ended``), or of Qwen (``None``): neither.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    marks = [first, last, "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1000, special_tokens=marks, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([text] * 2, trainer)
    if ended is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}" if ended else f"{first} $A",
            special_tokens=[(mark, tokenizer.token_to_id(mark)) for mark in (first, last)],
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=first, eos_token=last, pad_token=last, padding_side="right"
    )


def clip(pooled_dim=24):
    """Second tokenizer and text encoder of HunyuanVideo and Kandinsky 5."""
    tokenizer = byte_bpe("<|startoftext|>", "<|endoftext|>", "A red disc moves.", ended=True)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=pooled_dim,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        projection_dim=pooled_dim,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    return {"tokenizer_2": tokenizer, "text_encoder_2": seeded(transformers.CLIPTextModel, config)}


def llama_and_clip():
    """Tokenizers and text encoders of HunyuanVideo. The video template is 95 tokens long, as it really is."""
    from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

    template = DEFAULT_PROMPT_TEMPLATE["template"]
    tokenizer = byte_bpe("<|begin_of_text|>", "<|end_of_text|>", template, ended=False)
    llama = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=DIM,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return {"tokenizer": tokenizer, "text_encoder": seeded(transformers.LlamaModel, llama), **clip()}


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's template of a chat."""


def qwen_sizes(tokenizer):
    """Of a small Qwen2.5-VL's language model."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3], "rope_type": "default"},
    }


def qwen_and_clip():
    """Tokenizers and text encoders of Kandinsky 5, whose video template is 128 tokens long (131 of these)."""
    from diffusers import Kandinsky5T2VPipeline

    nothing = dict.fromkeys(Kandinsky5T2VPipeline._get_signature_keys(Kandinsky5T2VPipeline)[0])
    template = Kandinsky5T2VPipeline(**nothing).prompt_template
    tokenizer = byte_bpe("<|im_start|>", "<|im_end|>", template, ended=None)
    vision = {"depth": 1, "hidden_size": 16, "num_heads": 2, "intermediate_size": 16, "out_hidden_size": 32}
    config = transformers.Qwen2_5_VLConfig(text_config=qwen_sizes(tokenizer), vision_config=vision)
    encoder = seeded(transformers.Qwen2_5_VLForConditionalGeneration, config)
    return {"tokenizer": tokenizer, "text_encoder": encoder, **clip()}


def qwen_and_byt5():
    """Tokenizers and text encoders of HunyuanVideo 1.5. The video template is 108 tokens long, as it really is."""
    import inspect

    from diffusers import HunyuanVideo15Pipeline

    words = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters["system_message"].default
    tokenizer = byte_bpe("<|im_start|>", "<|im_end|>", f"{words} system\n", ended=None)
    tokenizer.chat_template = CHAT
    return {
        "tokenizer": tokenizer,
        "tokenizer_2": transformers.ByT5Tokenizer(),
        "text_encoder": seeded(
            transformers.Qwen2_5_VLTextModel, transformers.Qwen2_5_VLTextConfig(**qwen_sizes(tokenizer))
        ),
        "text_encoder_2": t5()["text_encoder"],
    }


def gemma(version):
    """Tokenizer and text encoder of an LTX-2: Gemma 3, or Gemma 4 from 2.5 on. Padding is the pipeline's to choose."""
    tokenizer = byte_bpe("<bos>", "<eos>", "Sound and picture.", ended=False)
    sizes = {
        "vocab_size": 1005,
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "sliding_window": 64,
        "max_position_embeddings": 4096,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    if version == "2.5":
        more = {"global_head_dim": 16, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 1005}
        config = transformers.Gemma4UnifiedConfig(text_config=sizes | more | {"num_kv_shared_layers": 0})
        encoder = seeded(transformers.Gemma4UnifiedForConditionalGeneration, config)
    else:
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = transformers.Gemma3Config(
            text_config=sizes,
            vision_config=vision | {"image_size": 28, "patch_size": 14},
            mm_tokens_per_image=4,
            image_token_index=1001,
            boi_token_index=1002,
            eoi_token_index=1003,
        )
        encoder = seeded(transformers.Gemma3ForConditionalGeneration, config)
    return {"tokenizer": tokenizer, "text_encoder": encoder}


def save(pipeline, folder):
    """Write a pipeline; every part must be there, or the base would be none."""
    pipeline.save_pretrained(folder)
    return folder
